"""A version's checkpoint, made from base and chain: changed shards streamed, others linked, the rest copied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin, PinnedFile, touched
from reviver.checkpoint.rounding import check_shapes, tensor_chunks
from reviver.checkpoint.stream import Sink
from reviver.errors import BaseMismatchError, CheckpointError, ResourceError, UsageError
from reviver.files import (
    CHUNK_BYTES,
    LINK_MODES,
    atomic_file,
    disk_error,
    free_bytes,
    fsync_folder,
    link_file,
    sha256_file,
)
from reviver.progress import NullProgress, Progress, Task
from reviver.text import human_bytes, printable

Chain = Mapping[str, Sequence[Delta]]
"""The deltas of each edited tensor, by its name on disk."""

# What else a version needs on the disk beside its files: folders, the patch, the manifest.
_SPARE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of a version."""

    path: str
    size: int
    sha256: str
    changed: bool
    """Whether its bytes differ from the base's by an edit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCheckpoint:
    """What was written, or, without a destination, what would have been."""

    files: tuple[FileRecord, ...]
    """Every file of the version, sorted by path."""
    tensor_sha256: Mapping[str, str]
    """The hash of the new bytes of each tensor of the chain."""
    link_mode: str | None
    """How unchanged shards were carried over; None if there was none, or no destination."""
    bytes_written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewritePlan:
    """What `write_checkpoint` will do, known before a byte is written."""

    changed_shards: tuple[str, ...]
    linked_shards: tuple[str, ...]
    copied_files: tuple[str, ...]
    bytes_rewritten: int
    """The size of the changed shards and the copied files."""
    bytes_linked: int
    """The size of the unchanged shards: disk space only where they have to be copied."""


def plan_checkpoint(base: CheckpointFolder, pin: BasePin, chain: Chain) -> RewritePlan:
    """Check a chain against the base and say which files it changes.

    Raises:
        UnsupportedModelError: a tensor of the chain cannot be edited, or is not there.
        BaseMismatchError: a delta has another shape, or the base is not laid out as it was pinned.
    """
    changed: set[str] = set()
    for name, deltas in chain.items():
        if not deltas:
            continue
        entry = base.check_editable(name)
        if pin.tensors.get(name) != entry:
            raise _moved(f"tensor `{printable(name, 120)}` of the base does not lie where it was pinned")
        check_shapes(name, entry.shape, deltas)
        changed.add(entry.shard)
    linked = tuple(shard for shard in base.shards if shard not in changed)
    copied = tuple(file.path for file in pin.files if file.path not in base.headers)
    sizes = {file.path: file.size for file in pin.files}
    missing = sorted({*base.shards} - sizes.keys())
    if missing:
        raise _moved(f"`{printable(missing[0], 120)}` of the base was not pinned")
    return RewritePlan(
        changed_shards=tuple(sorted(changed)),
        linked_shards=linked,
        copied_files=copied,
        bytes_rewritten=sum(sizes[path] for path in (*changed, *copied)),
        bytes_linked=sum(sizes[path] for path in linked),
    )


def check_base(pin: BasePin) -> None:
    """Check that the base's files are still those that were pinned.

    Sizes and times are compared; a file of which only the time changed is hashed again.

    Raises:
        BaseMismatchError: the folder or a file is gone, or its bytes changed.
    """
    if not Path(pin.folder).is_dir():
        raise BaseMismatchError(
            f"the base is no longer at `{pin.folder}`",
            hint="put it back, or name its new place with `reviver init FOLDER`"
            if pin.revision is None
            else f"`reviver init {printable(pin.init_argument, 400)}` fetches and checks the same base again",
            path=pin.folder,
        )
    pinned = {file.path: file for file in pin.files}
    for file in touched(pin):
        path = Path(pin.folder) / file.path
        if file.what == "missing":
            raise _moved(f"`{printable(file.path, 120)}` of the base is gone", path=path)
        if file.what == "size" or _hash_base(path) != pinned[file.path].sha256:
            raise _moved(f"`{printable(file.path, 120)}` of the base was changed since it was pinned", path=path)


def write_checkpoint(
    base: CheckpointFolder,
    pin: BasePin,
    chain: Chain,
    destination: Path | None,
    *,
    link_mode: str | None = None,
    progress: Progress | None = None,
) -> WrittenCheckpoint:
    """Write the checkpoint of base + chain, or only compute its hashes.

    A shard that holds a tensor of the chain is the base's bytes, header included, with the edited tensors' byte ranges
    replaced: read, hashed and written in one pass, a block of rows in memory. Other shards are linked, all other files
    copied and checked against their pinned hashes. Each file appears under its name only when it is whole and on the
    disk.

    Args:
        base: the base's folder; it is only read.
        pin: what the base was when it was pinned.
        chain: the deltas of every version from the first to this one, by tensor; tensors with no deltas stay as they
            are.
        destination: an existing folder, or one to be made; None to compute the hashes and write nothing.
        link_mode: one of `LINK_MODES`, or None for the first that works.
        progress: told of every byte.

    Raises:
        BaseMismatchError: the base is not what was pinned, or the chain is for another base.
        UnsupportedModelError: a tensor of the chain cannot be edited.
        NumericsError: a result is NaN, infinite or overflows.
        ResourceError: the disk is full, or the folder cannot be written to.
        UsageError: the destination lies in the base, or there is no such link mode.
    """
    progress = progress or NullProgress()
    if link_mode is not None and link_mode not in LINK_MODES:
        raise UsageError(
            f"unknown link mode `{link_mode}`", hint=f"choose one of {', '.join(LINK_MODES)}", mode=link_mode
        )
    check_base(pin)
    plan = plan_checkpoint(base, pin, chain)
    pinned = {file.path: file for file in pin.files}
    if destination is not None:
        _check_destination(base.root, destination)
        needed = plan.bytes_rewritten + (plan.bytes_linked if link_mode == "copy" else 0)
        _check_space(destination, needed)
        _make_folders(destination, pinned)
    tensor_sha256: dict[str, str] = {}
    records = {
        file.path: FileRecord(path=file.path, size=file.size, sha256=file.sha256, changed=False) for file in pin.files
    }
    total = sum(pinned[shard].size for shard in plan.changed_shards)
    if destination is not None:
        total += sum(pinned[path].size for path in plan.copied_files)
    used_mode: str | None = None
    written = 0
    with progress.task("write the checkpoint" if destination else "compute the hashes", total=total, unit="B") as task:
        for shard in plan.changed_shards:
            path = None if destination is None else destination / shard
            digest, digests = _rewrite_shard(base, pin, shard, chain, path, task)
            tensor_sha256 |= digests
            size = pinned[shard].size
            records[shard] = FileRecord(path=shard, size=size, sha256=digest, changed=digest != pinned[shard].sha256)
            written += size if path is not None else 0
        if destination is not None:
            if plan.linked_shards:
                files = [pinned[shard] for shard in plan.linked_shards]
                used_mode = _carry_over(base.root, destination, files, link_mode)
                written += plan.bytes_linked if used_mode == "copy" else 0
            for name in plan.copied_files:
                _copy_checked(base.root / name, destination / name, pinned[name], task.advance)
                written += pinned[name].size
            fsync_folder(destination)
    # A base that was changed while it was read would have given a checkpoint that is nobody's sum.
    check_base(pin)
    return WrittenCheckpoint(
        files=tuple(records[path] for path in sorted(records)),
        tensor_sha256=tensor_sha256,
        link_mode=used_mode,
        bytes_written=written,
    )


def _rewrite_shard(
    base: CheckpointFolder, pin: BasePin, shard: str, chain: Chain, destination: Path | None, task: Task
) -> tuple[str, dict[str, str]]:
    """Write one shard, or only hash it; return its hash and those of its edited tensors."""
    header = base.headers[shard]
    digests: dict[str, str] = {}
    with ExitStack() as stack:
        file = None if destination is None else stack.enter_context(atomic_file(destination))
        with Sink(file, task.advance) as sink:
            position = 0
            for entry in header.tensors:
                deltas = chain.get(entry.name)
                if not deltas:
                    continue
                sink.put_all(_read_chunks(header.path, position, entry.start))
                digest = hashlib.sha256()
                sink.put_all(
                    tensor_chunks(base, entry.name, deltas, base_sha256=pin.tensor_sha256[entry.name]),
                    also=digest.update,
                )
                sink.drain()
                digests[entry.name] = digest.hexdigest()
                position = entry.end
            sink.put_all(_read_chunks(header.path, position, header.size))
            sink.drain()
            whole = sink.hexdigest()
    return whole, digests


def _read_chunks(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` to `end`, a chunk at a time."""
    if start == end:
        return
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                chunk = file.read(min(CHUNK_BYTES, end - start))
                if not chunk:
                    raise _moved(
                        f"`{printable(path.name, 120)}` of the base became shorter while it was read", path=path
                    )
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise CheckpointError(
            f"`{printable(path.name, 120)}` of the base cannot be read: {error.strerror or error}",
            hint="fetch the base again",
            path=path,
        ) from error


def _carry_over(root: Path, destination: Path, shards: Sequence[PinnedFile], forced: str | None) -> str:
    """Link the unchanged shards by the forced mode, or by the first that works for all of them; return the mode."""
    for mode in (forced,) if forced is not None else LINK_MODES:
        try:
            if mode == "copy":
                _check_space(destination, sum(shard.size for shard in shards))
                for shard in shards:
                    _copy_checked(root / shard.path, destination / shard.path, shard, _nobody)
            else:
                for shard in shards:
                    link_file(root / shard.path, destination / shard.path, mode)
            return mode
        except ResourceError:
            if forced is not None or mode == "copy":
                raise
    raise AssertionError("unreachable")


def _nobody(amount: float) -> None:
    """Tell nobody of the progress: nobody knew that these bytes would have to be copied."""


def _copy_checked(source: Path, destination: Path, pinned: PinnedFile, advance: Callable[[float], None]) -> None:
    """Copy a file verbatim, and check on the way that it is the one that was pinned."""
    with atomic_file(destination) as file, Sink(file, advance) as sink:
        sink.put_all(_read_chunks(source, 0, pinned.size))
        sink.drain()
        if sink.hexdigest() != pinned.sha256:
            raise _moved(f"`{printable(pinned.path, 120)}` of the base was changed since it was pinned", path=source)


def _check_destination(root: Path, destination: Path) -> None:
    resolved, base = destination.resolve(), root.resolve()
    if resolved == base or base in resolved.parents:
        raise UsageError(
            f"`{destination}` lies in the base's own folder, which is never written",
            hint="choose a folder outside the base",
            path=destination,
        )


def _check_space(destination: Path, needed: int) -> None:
    free = free_bytes(destination)
    if needed + _SPARE_BYTES > free:
        raise ResourceError(
            f"the checkpoint needs {human_bytes(needed)} and the disk that holds `{destination}` has {human_bytes(free)} free",
            hint="free some space, or write it elsewhere with `-o`; `--no-checkpoint` makes a version without one",
            path=destination,
            needed=needed,
            free=free,
        )


def _make_folders(destination: Path, paths: Iterable[str]) -> None:
    try:
        folders = {destination, *((destination / path).parent for path in paths)}
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in sorted(folders, reverse=True):
            fsync_folder(folder)
    except OSError as error:
        raise disk_error(error, destination / "config.json") from error


def _hash_base(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise CheckpointError(
            f"`{path}` cannot be read: {error.strerror or error}", hint="check the path and its permissions", path=path
        ) from error


def _moved(message: str, **facts: object) -> BaseMismatchError:
    return BaseMismatchError(
        message,
        hint="restore the base, or build on the changed one in another workspace: `reviver init MODEL DIR`",
        **facts,
    )
