"""`reviver undo`: the head goes back to where it was before the last operation that moved it.

Nothing is lost: the version, its patch and its checkpoint stay, and the operation log remembers. `undo` again goes one
operation further back; it never undoes an `undo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import WorkspaceError
from reviver.history.manifest import BASE_NAME
from reviver.history.operations import Operation
from reviver.history.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoReport:
    """How the head moved."""

    head_before: str
    head_after: str
    undone_verb: str
    """The operation that was undone."""
    undone_time: str | None
    """When that was; None where the log does not reach back so far."""
    checkpoint: Path | None
    """The checkpoint of the new head, if it is written."""


def undo(workspace_dir: Path) -> UndoReport:
    """Move the head back.

    The log decides: the last operation that moved the head here and is not undone yet. Where the log does not reach
    back so far (a history that was cloned), the head moves to its parent.

    Raises:
        WorkspaceError: there is nothing to undo, or no workspace.
        VersionNotFoundError: the former head is gone.
        LockedError: another process is writing.
    """
    workspace = Workspace.open(workspace_dir)
    with workspace.lock("undo"):
        head = workspace.head()
        operation = last_undoable(workspace.operations(), head)
        if operation is not None:
            target, detail = operation.head_before, {"undoes": operation.number}
        elif head != BASE_NAME:
            target, detail = workspace.version(head).parent, {}
        else:
            raise WorkspaceError(
                "there is nothing to undo: the head is the base",
                hint="`reviver log` shows the versions there are",
            )
        workspace.move_head("undo", target, detail)
    checkpoint = workspace.checkpoint(target)
    return UndoReport(
        head_before=head,
        head_after=target,
        undone_verb="apply" if operation is None else operation.verb,
        undone_time=None if operation is None else operation.time,
        checkpoint=checkpoint if checkpoint.is_dir() else None,
    )


def last_undoable(operations: Sequence[Operation], head: str) -> Operation | None:
    """Return the operation that `undo` would undo; None where the log does not explain how the head came here."""
    undone = {operation.detail.get("undoes") for operation in operations if operation.verb == "undo"}
    for operation in reversed(operations):
        moved = operation.head_before != operation.head_after
        if moved and operation.verb != "undo" and operation.number not in undone:
            return operation if operation.head_after == head else None
    return None
