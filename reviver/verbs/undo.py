"""`reviver undo`: the head goes back to where it was before the last operation that moved it.

Nothing is lost: the version, its patch and its checkpoint stay, and the operation log remembers. `undo` again goes one
operation further back; `redo` goes forward again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reviver.errors import WorkspaceError
from reviver.history.manifest import BASE_NAME
from reviver.history.steps import UNDO, UNDOES, read_steps
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
    with workspace.lock(UNDO):
        head = workspace.head()
        step = read_steps(workspace.operations()).next_undo(head)
        if step is not None:
            workspace.move_head(UNDO, step.before, {UNDOES: step.number})
        elif head != BASE_NAME:
            workspace.move_head(UNDO, workspace.version(head).parent)
        else:
            raise WorkspaceError(
                "there is nothing to undo: the head is the base",
                hint="`reviver log` shows the versions there are",
            )
        target = workspace.head()
    checkpoint = workspace.checkpoint(target)
    return UndoReport(
        head_before=head,
        head_after=target,
        undone_verb="apply" if step is None else step.verb,
        undone_time=None if step is None else step.time,
        checkpoint=checkpoint if checkpoint.is_dir() else None,
    )
