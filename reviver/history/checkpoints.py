"""The written checkpoints of a workspace: which there are, whether they can be written again, and their removal."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from reviver.errors import BaseMismatchError, ReviverError
from reviver.files import disk_error, fsync_folder
from reviver.history.chain import check_link
from reviver.history.intent import remove_tree
from reviver.history.manifest import BASE_NAME
from reviver.history.untrusted import shown
from reviver.history.version import Version
from reviver.history.workspace import Workspace


def written_checkpoints(workspace: Workspace) -> list[str]:
    """Return the versions whose checkpoint is written, oldest first; the base's copy, if there is one, comes first."""
    return [name for name in (BASE_NAME, *workspace.version_names()) if workspace.checkpoint(name).is_dir()]


def beyond(workspace: Workspace, keep: int, *, spare: str) -> list[str]:
    """Return the checkpoints that are more than `keep`, oldest first; `spare` is never among them, nor is the base's."""
    written = [name for name in written_checkpoints(workspace) if name != BASE_NAME]
    return [name for name in written if name != spare][: max(0, len(written) - keep)]


def obstacles(workspace: Workspace, names: Sequence[str]) -> dict[str, ReviverError]:
    """Return what keeps each of these versions from being written again; nothing for those that can be.

    Looks at manifests and ids, at every byte of the patches (few beside what would go), and at sizes and times of the base's
    files.

    Raises:
        WorkspaceError: the base is not pinned.
        BaseMismatchError: a file of the base is gone or was touched, so that no checkpoint can be trusted to come back.
    """
    from reviver.checkpoint.pin import touched

    pin = workspace.pin()
    if changed := touched(pin):
        what = "is missing" if changed[0].what == "missing" else "was touched"
        raise BaseMismatchError(
            f"`{shown(changed[0].path)}` of the base {what}: a checkpoint that is removed could not be written again",
            hint=f"`reviver init {shown(pin.init_argument)}` finds the base again, or tells what changed",
            path=changed[0].path,
        )
    found: dict[str, ReviverError] = {}
    known: dict[str, Version] = {}
    sound = {BASE_NAME: pin.fingerprint}
    for name in names:
        try:
            for version in workspace.chain(name, known=known):
                if version.name not in sound:
                    check_link(version, sound[version.parent], pin.fingerprint)
                    version.patch()
                    sound[version.name] = version.id
        except ReviverError as error:
            found[name] = error
    return found


def freed_bytes(paths: Iterable[Path]) -> int:
    """Return how many bytes of files go when these files and folders are removed.

    A file with another name outside of them (a hard link) stays and frees nothing; symbolic links are not followed and
    count nothing. Where the file system shares extents (reflinks) it may free less: only it knows.
    """
    sizes: dict[tuple[int, int], int] = {}
    left: dict[tuple[int, int], int] = {}
    for path in paths:
        for state in _files(path):
            key = (state.st_dev, state.st_ino)
            sizes[key] = state.st_size
            left[key] = left.get(key, state.st_nlink) - 1
    return sum(size for key, size in sizes.items() if left[key] <= 0)


def _files(path: Path) -> Iterator[os.stat_result]:
    """Yield the state of every regular file at or below a path, links not followed."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(state.st_mode):
        yield state
    elif stat.S_ISDIR(state.st_mode):
        for entry in path.iterdir():
            yield from _files(entry)


def remove_checkpoint(workspace: Workspace, name: str) -> None:
    """Remove the checkpoint of a version; the caller holds the lock. What the checkpoint links to stays.

    Raises:
        ResourceError: it cannot be removed.
    """
    # Under a leftover's name first: killed in between, it is cleaned up and not taken for a damaged checkpoint.
    doomed = workspace.checkpoints / f".{name}.partial"
    try:
        workspace.checkpoint(name).rename(doomed)
        fsync_folder(workspace.checkpoints)
    except OSError as error:
        raise disk_error(error, workspace.checkpoint(name)) from error
    remove_tree(doomed)
    remove_tree(workspace.stamps / f"{name}.json")


def drop_old_checkpoints(workspace: Workspace, keep: int | None, *, newest: str) -> None:
    """Remove the checkpoints beyond the number that is kept, oldest first; the caller holds the lock.

    One that could not be written again stays.

    Args:
        keep: None for all.
        newest: the version that was just made, which stays.
    """
    names = [] if keep is None else beyond(workspace, keep, spare=newest)
    if not names:
        return
    try:
        kept = obstacles(workspace, names)
    except BaseMismatchError:
        return
    for name in names:
        if name not in kept:
            remove_checkpoint(workspace, name)
