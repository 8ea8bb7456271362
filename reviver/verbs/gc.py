"""`reviver gc`: free the disk of checkpoints, which can be written again; the history is never touched.

What killed processes left half made goes as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import UsageError
from reviver.history.checkpoints import beyond, freed_bytes, obstacles, remove_checkpoint, written_checkpoints
from reviver.history.intent import checkpoint_names
from reviver.history.lock import current_holder
from reviver.history.untrusted import problem_of
from reviver.history.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What was removed, or with `dry_run` would be."""

    dry_run: bool
    removed: tuple[str, ...]
    """The versions whose checkpoint goes."""
    not_written: tuple[str, ...]
    """Versions that were named and have no checkpoint."""
    kept: tuple[str, ...]
    """The versions whose checkpoint stays."""
    leftovers: tuple[str, ...]
    """What killed processes left half made, relative to the workspace; it goes too."""
    bytes_freed: int
    """What no other link on this disk holds on to."""
    warnings: tuple[str, ...]


def gc(
    workspace_dir: Path,
    names: Sequence[str] = (),
    *,
    keep: int | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> GcReport:
    """Remove checkpoints; nothing without a scope.

    Args:
        names: versions whose checkpoints go, as a person names them; the head's may be among them.
        keep: so many checkpoints stay, the newest, and the head's in any case.
        everything: all checkpoints go, the head's and the base's copy among them.
        dry_run: only look.

    Raises:
        UsageError: there is no scope, or more than one.
        VersionNotFoundError: nothing goes by a name.
        WorkspaceError, BaseMismatchError: a named checkpoint, or with a changed base any, could not be written again.
        LockedError: another process is writing.
        ResourceError: something cannot be removed.
    """
    if (bool(names), keep is not None, everything).count(True) != 1:
        raise UsageError(
            "`gc` takes one scope: names of versions, `--keep N` or `--all`",
            hint="see what would go with `reviver gc --keep 1 --dry-run`",
        )
    if keep is not None and keep < 0:
        raise UsageError(f"`--keep {keep}` is no number of checkpoints", hint="give 0 or more")
    workspace = Workspace.open(workspace_dir)
    # Whoever takes the lock removes the leftovers, so they are counted before; what a living process makes is none.
    leftovers = workspace.leftovers() if current_holder(workspace.lock_file) is None else []
    freed = freed_bytes(leftovers)
    if dry_run:
        return _collect(workspace, names, keep, leftovers, freed, dry_run=True)
    with workspace.lock("gc"):
        gone = [path for path in leftovers if not os.path.lexists(path)]
        return _collect(workspace, names, keep, gone, freed, dry_run=False)


def _collect(
    workspace: Workspace,
    names: Sequence[str],
    keep: int | None,
    leftovers: Sequence[Path],
    freed: int,
    *,
    dry_run: bool,
) -> GcReport:
    written = written_checkpoints(workspace)
    warnings: list[str] = []
    if names:
        wanted = list(dict.fromkeys(workspace.resolve(name) for name in names))
    elif keep is not None:
        wanted = beyond(workspace, keep, spare=workspace.head())
    else:
        wanted = written
        strangers = [name for name in checkpoint_names(workspace) if name not in written]
        warnings += [f"`checkpoints/{name}` belongs to no version and stays" for name in strangers]
    doomed = [name for name in wanted if name in written]
    for name, error in (obstacles(workspace, doomed) if doomed else {}).items():
        if names:
            raise error
        warnings.append(f"`checkpoints/{name}` stays, it could not be written again: {problem_of(error)}")
        doomed.remove(name)
    freed += freed_bytes(workspace.checkpoint(name) for name in doomed)
    if not dry_run and doomed:
        for name in doomed:
            remove_checkpoint(workspace, name)
        workspace.record("gc", {"removed": doomed, "bytes_freed": freed})
    return GcReport(
        dry_run=dry_run,
        removed=tuple(doomed),
        not_written=tuple(name for name in wanted if name not in written),
        kept=tuple(name for name in written if name not in doomed),
        leftovers=tuple(path.relative_to(workspace.root).as_posix() for path in leftovers),
        bytes_freed=freed,
        warnings=tuple(warnings),
    )
