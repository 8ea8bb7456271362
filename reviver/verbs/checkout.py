"""`reviver checkout V`: write the checkpoint of a version; the head stays where it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import CheckFailedError, UsageError, WorkspaceError
from reviver.files import disk_error, fsync_folder, partial_path
from reviver.history.draft import sync_tree
from reviver.history.intent import remove_tree
from reviver.history.stamps import files_below, write_stamps
from reviver.history.untrusted import shown
from reviver.history.verification import HashedFiles, compare_file
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress

if TYPE_CHECKING:
    from reviver.checkpoint.pin import BasePin
    from reviver.checkpoint.rewrite import WrittenCheckpoint
    from reviver.history.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutReport:
    """Where the checkpoint is."""

    version: str
    path: Path
    already: bool
    """It was there already, every byte of it, and nothing was written."""
    link_mode: str | None
    """How unchanged shards were carried over; None where none was, or nothing was written."""
    bytes_written: int
    files: int


def checkout(
    workspace_dir: Path,
    name: str = "head",
    *,
    output: Path | None = None,
    link_mode: str | None = None,
    progress: Progress | None = None,
) -> CheckoutReport:
    """Write the checkpoint of a version to `checkpoints/vN` or to another folder: wholly, or not at all.

    Every hash is compared with the manifest while it is written. A folder that holds exactly this version already is
    left alone, and one that holds anything else is refused.

    Args:
        name: as a person names it; `base` gives a copy of the base.
        output: a folder that does not exist or is empty; None for `checkpoints/vN`.
        link_mode: how unchanged shards are carried over; None for the first mode that works.

    Raises:
        WorkspaceError: the folder holds something else.
        UsageError: the folder lies in the base, in `edits/`, in `checkpoints/` or in `.reviver/`.
        VersionNotFoundError, ManifestError, BaseMismatchError: no such version, a damaged one, or a changed base.
        CheckFailedError: what base and patches give is not what the manifest says; nothing is left behind.
        ResourceError: the disk is full or cannot be written.
        LockedError: another process is writing.
    """
    workspace = Workspace.open(workspace_dir)
    progress = progress or NullProgress()
    with workspace.lock("checkout"):
        version = workspace.resolve(name)
        chain = workspace.chain(version)
        pin = workspace.pin()
        expected = _expected(chain, pin)
        target = workspace.checkpoint(version)
        if output is not None and Path(os.path.abspath(output)) != Path(os.path.abspath(target)):
            target = Path(os.path.abspath(output))
            _check_output(workspace, pin, target)
            if target.is_dir() and not any(target.iterdir()):
                # A link to an empty folder stays: what is written goes where it points.
                target = target.resolve()
        if _exists(target):
            _check_same(target, version, expected, progress)
            return CheckoutReport(
                version=version, path=target, already=True, link_mode=None, bytes_written=0, files=len(expected)
            )
        return _write(workspace, version, chain, pin, expected, target, link_mode, progress)


def _write(
    workspace: Workspace,
    version: str,
    chain: list[Version],
    pin: BasePin,
    expected: Mapping[str, tuple[int, str]],
    target: Path,
    link_mode: str | None,
    progress: Progress,
) -> CheckoutReport:
    from reviver.checkpoint.folder import CheckpointFolder
    from reviver.checkpoint.rewrite import write_checkpoint
    from reviver.history.chain import chain_deltas

    deltas = chain_deltas(chain, pin) if chain else {}
    base = CheckpointFolder.open(Path(pin.folder))
    _remove_former_partials(target)
    partial = partial_path(target)
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
        except OSError as error:
            raise disk_error(error, target) from error
        written = write_checkpoint(base, pin, deltas, partial, link_mode=link_mode, progress=progress)
        _check_written(version, chain, expected, written)
        if target.parent == workspace.checkpoints:
            write_stamps(workspace.stamps, version, chain[-1].id if chain else pin.fingerprint, partial)
        try:
            sync_tree(partial)
            # An empty folder of this name, if there is one, is replaced.
            partial.rename(target)
            fsync_folder(target.parent)
        except OSError as error:
            raise disk_error(error, target) from error
    except BaseException:
        remove_tree(partial)
        raise
    return CheckoutReport(
        version=version,
        path=target,
        already=False,
        link_mode=written.link_mode,
        bytes_written=written.bytes_written,
        files=len(written.files),
    )


def _expected(chain: list[Version], pin: BasePin) -> dict[str, tuple[int, str]]:
    from reviver.history.comparison import files_of

    return files_of(chain[-1] if chain else None, pin)


def _check_output(workspace: Workspace, pin: BasePin, output: Path) -> None:
    place = output.resolve()
    for folder, what in (
        (Path(pin.folder), "the base, which is never written"),
        (workspace.edits, "the history"),
        (workspace.checkpoints, "`checkpoints`, where each version has a place of its own"),
        (workspace.private, "reviver's own folder"),
    ):
        if place.is_relative_to(folder.resolve()):
            raise UsageError(f"`{shown(output)}` lies in {what}", hint="choose a folder outside with `-o`", path=output)
    if workspace.root.resolve().is_relative_to(place):
        raise UsageError(f"`{shown(output)}` holds the workspace", hint="choose another folder with `-o`", path=output)


def _exists(target: Path) -> bool:
    """Tell whether something is there that must not be replaced; an empty folder is nothing."""
    if not os.path.lexists(target):
        return False
    return target.is_symlink() or not target.is_dir() or any(target.iterdir())


def _check_same(target: Path, version: str, expected: Mapping[str, tuple[int, str]], progress: Progress) -> None:
    """Check that a folder holds exactly these files."""
    if not target.is_dir():
        raise WorkspaceError(
            f"`{shown(target)}` is in the way", hint="choose another folder with `-o`, or move it away", path=target
        )
    hashes = HashedFiles({})
    different = [path for path in files_below(target) if path not in expected]
    for path, (size, sha256) in sorted(expected.items()):
        if different:
            break
        if compare_file(target / path, size, sha256, hashes, progress) is not None:
            different.append(path)
    if different:
        raise WorkspaceError(
            f"`{shown(target)}` holds something else than {version}: `{shown(different[0])}` differs",
            hint="choose an empty folder with `-o`, or move this one away and run it again",
            path=target,
        )


def _check_written(
    version: str, chain: list[Version], expected: Mapping[str, tuple[int, str]], written: WrittenCheckpoint
) -> None:
    """Compare what was written with the manifest."""
    made = {file.path: (file.size, file.sha256) for file in written.files}
    recorded = {tensor.name: tensor.result_sha256 for one in chain for tensor in one.manifest.tensors}
    wrong = sorted(path for path in made.keys() | expected.keys() if made.get(path) != expected.get(path))
    wrong += sorted(name for name, sha256 in recorded.items() if written.tensor_sha256.get(name) != sha256)
    if wrong:
        raise CheckFailedError(
            f"`{shown(wrong[0])}` of {version} is not what its manifest says",
            hint="nothing was written; `reviver verify` tells what is damaged",
            version=version,
            wrong=wrong,
        )


def _remove_former_partials(target: Path) -> None:
    """Remove what a killed checkout to the same folder left beside it."""
    if target.parent.is_dir():
        for path in sorted(target.parent.iterdir()):
            if path.name.startswith(f".{target.name}.") and path.name.endswith(".partial"):
                remove_tree(path)
