"""`reviver redo`: the head goes forward again to where it was before the last `undo`.

Several undos are taken back one by one. An operation that moves the head elsewhere (a new version, say) ends that, as in
an editor: from then on there is nothing to redo, and the versions that were undone are branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reviver.errors import WorkspaceError
from reviver.history.steps import REDO, REDOES, read_steps
from reviver.history.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class RedoReport:
    """How the head moved."""

    head_before: str
    head_after: str
    redone_verb: str
    """The operation that was done again."""
    redone_time: str | None
    """When that was done first; None where the log does not reach back so far."""
    checkpoint: Path | None
    """The checkpoint of the new head, if it is written."""


def redo(workspace_dir: Path) -> RedoReport:
    """Move the head forward to where the last `undo` took it from.

    Raises:
        WorkspaceError: there is nothing to redo, or no workspace.
        VersionNotFoundError: the version that was undone is gone.
        LockedError: another process is writing.
    """
    workspace = Workspace.open(workspace_dir)
    with workspace.lock(REDO):
        head = workspace.head()
        step = read_steps(workspace.operations()).next_redo(head)
        if step is None:
            raise WorkspaceError(
                "there is nothing to redo: the last operation that moved the head was no `undo`",
                hint="`reviver log --graph` shows the versions there are; `reviver apply FACTS --from V` goes on from any",
            )
        workspace.move_head(REDO, step.after, {REDOES: step.number})
    checkpoint = workspace.checkpoint(step.after)
    return RedoReport(
        head_before=head,
        head_after=step.after,
        redone_verb=step.verb,
        redone_time=step.time,
        checkpoint=checkpoint if checkpoint.is_dir() else None,
    )
