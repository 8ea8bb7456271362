"""The pin of a base: each file's size and hash, each tensor's place and hash, and the fingerprint that binds the rest."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reviver.checkpoint.folder import CONFIG_NAME, INDEX_NAME, CheckpointFolder
from reviver.checkpoint.header import TensorEntry
from reviver.errors import CheckpointError, ReviverError, UnsafePathError, WorkspaceError
from reviver.files import CHUNK_BYTES, canonical_json, parse_json, pretty_json, safe_relative_path, sha256_bytes
from reviver.progress import NullProgress, Progress
from reviver.text import printable

SCHEMA = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedFile:
    """One file of the base as it was when it was pinned."""

    path: str
    size: int
    sha256: str
    modified_ns: int
    """The time of the last change, in nanoseconds: a sign that a file was touched, never a proof that it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchedFile:
    """A file of the base that is not as it was pinned."""

    path: str
    what: str
    """`missing`, `size` or `time`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePin:
    """Which base a workspace stands on. `.reviver/base.json` is its file."""

    source: str
    """Where it came from: `local` or `hub`."""
    model: str
    """The name of the folder, without the way to it, or the Hub id."""
    revision: str | None
    """The commit on the Hub, or None for a folder."""
    folder: str
    """The absolute path of the folder that holds the files on this machine."""
    files: tuple[PinnedFile, ...]
    """Every file that a version carries, sorted by path."""
    tensors: Mapping[str, TensorEntry]
    tensor_sha256: Mapping[str, str]
    """The hash of every tensor's bytes, by name."""
    fingerprint: str
    """SHA-256 over the hashes of shards, index and configuration: what everything derived from this base carries."""
    family: str | None = None
    """The architecture as `init` recognised it."""
    preset: str | None = None
    """The preset that `init` took, or None if the choices were derived."""
    layers: tuple[int, ...] = ()
    """The layers that `init` chose, by number."""
    edited: tuple[str, ...] = ()
    """The names on disk of the tensors that `init` prepared for editing, in the order of the layers."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else `init` wants to remember: JSON values."""

    @property
    def init_argument(self) -> str:
        """What `reviver init` takes to find this base again, quoted as a shell wants it; `FOLDER` for one that has moved."""
        if self.revision is not None:
            return shlex.quote(f"{self.model}@{self.revision}")
        return shlex.quote(self.folder) if os.path.isdir(self.folder) else "FOLDER"

    def file(self, path: str) -> PinnedFile:
        """Return the pinned file of this relative path; KeyError if the pin does not hold it."""
        for pinned in self.files:
            if pinned.path == path:
                return pinned
        raise KeyError(path)

    def to_json(self) -> bytes:
        """Return the pin as the bytes of `base.json`."""
        value = {
            "schema": SCHEMA,
            "source": self.source,
            "model": self.model,
            "revision": self.revision,
            "folder": self.folder,
            "fingerprint": self.fingerprint,
            "files": [asdict(pinned) for pinned in self.files],
            "tensors": {
                entry.name: {
                    "dtype": entry.dtype,
                    "shape": list(entry.shape),
                    "shard": entry.shard,
                    "start": entry.start,
                    "end": entry.end,
                    "sha256": self.tensor_sha256[entry.name],
                }
                for entry in self.tensors.values()
            },
            "family": self.family,
            "preset": self.preset,
            "layers": list(self.layers),
            "edited": list(self.edited),
            "extra": dict(self.extra),
        }
        return pretty_json(value)

    @classmethod
    def from_json(cls, raw: bytes) -> BasePin:
        """Return the pin that `to_json` wrote.

        Raises:
            WorkspaceError: the bytes are damaged, or were written by a newer reviver.
        """
        try:
            value = parse_json(raw)
            if isinstance(value, dict) and type(value.get("schema")) is int and value["schema"] > SCHEMA:
                raise WorkspaceError(
                    "the pin of the base was written by a newer reviver", hint="upgrade with `pip install -U reviver`"
                )
            return _pin_from(value)
        except ReviverError as error:
            if not isinstance(error, UnsafePathError):
                raise
            reason = error.message
        except ValueError as error:
            reason = str(error)
        raise WorkspaceError(
            f"the pin of the base is damaged: {reason}",
            hint="move `.reviver/base.json` away, then `reviver init MODEL` pins the base afresh",
        )


def fingerprint_of(files: Mapping[str, str]) -> str:
    """Return the fingerprint of a base from the hashes of its shards, its index and its configuration, by path."""
    return sha256_bytes(canonical_json({"files": dict(files)}))


def pin_folder(
    folder: CheckpointFolder,
    *,
    source: str,
    model: str,
    revision: str | None = None,
    progress: Progress | None = None,
) -> BasePin:
    """Hash every file of a checkpoint and every tensor in it, each byte read once.

    Raises:
        CheckpointError: a file cannot be read, or changed while it was hashed.
    """
    # Reading a pin is part of every command's start; hashing is not.
    from concurrent.futures import ThreadPoolExecutor

    progress = progress or NullProgress()
    sizes = {name: _size(folder.root, name) for name in folder.files}
    lock, stop = threading.Lock(), threading.Event()
    # Hashing releases the interpreter's lock, so files are hashed side by side; the largest first, so that none is left
    # to the end.
    workers = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
    by_size = sorted(folder.files, key=lambda name: -sizes[name])
    with progress.task("hash the base", total=sum(sizes.values()), unit="B") as task:

        def advance(amount: float) -> None:
            with lock:
                task.advance(amount)

        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(_pin_file, folder, name, advance, stop) for name in by_size]
            try:
                results = [future.result() for future in futures]
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    pinned = tuple(sorted((result[0] for result in results), key=lambda file: file.path))
    tensor_sha256 = {name: digest for _, digests in results for name, digest in digests.items()}
    decisive = {*folder.shards, INDEX_NAME, CONFIG_NAME}
    return BasePin(
        source=source,
        model=model,
        revision=revision,
        folder=str(folder.root),
        files=pinned,
        tensors=dict(folder.tensors),
        tensor_sha256={name: tensor_sha256[name] for name in folder.tensors},
        fingerprint=fingerprint_of({file.path: file.sha256 for file in pinned if file.path in decisive}),
    )


def _size(root: Path, name: str) -> int:
    try:
        return (root / name).stat().st_size
    except OSError as error:
        raise _unreadable(error, root / name, name) from error


def _unreadable(error: OSError, path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"`{printable(name, 120)}` cannot be read: {error.strerror or error}", hint="check its permissions", path=path
    )


def _pin_file(
    folder: CheckpointFolder, name: str, advance: Callable[[float], None], stop: threading.Event
) -> tuple[PinnedFile, dict[str, str]]:
    """Hash one file, and the tensors in it, in one pass."""
    path = folder.root / name
    header = folder.headers.get(name)
    whole, digests = hashlib.sha256(), dict[str, str]()
    # The stretches between marks are hashed into the tensor that they belong to; before the first tensor lies the
    # header.
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            buffer = memoryview(bytearray(min(CHUNK_BYTES, max(1, before.st_size))))

            def hash_stretch(length: int | None, also: Any = None) -> int:
                done = 0
                while length is None or done < length:
                    if stop.is_set():
                        raise CheckpointError("hashing was stopped")
                    count = file.readinto(buffer if length is None else buffer[: length - done])
                    if not count:
                        break
                    whole.update(buffer[:count])
                    if also is not None:
                        also.update(buffer[:count])
                    done += count
                    advance(count)
                return done

            size = 0
            if header is not None:
                size += hash_stretch(header.header_bytes)
                for entry in header.tensors:
                    digest = hashlib.sha256()
                    size += hash_stretch(entry.nbytes, digest)
                    digests[entry.name] = digest.hexdigest()
            size += hash_stretch(None)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(error, path, name) from error
    if size != before.st_size or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise CheckpointError(
            f"`{printable(name, 120)}` changed while it was hashed",
            hint="wait until it is written, then try again",
            path=path,
        )
    if header is not None and size != header.size:
        raise CheckpointError(
            f"`{printable(name, 120)}` changed since it was opened",
            hint="wait until it is written, then try again",
            path=path,
        )
    return PinnedFile(path=name, size=size, sha256=whole.hexdigest(), modified_ns=before.st_mtime_ns), digests


def touched(pin: BasePin) -> list[TouchedFile]:
    """Return the base's files that are gone or whose size or time differ from the pin; quick, and no proof of sameness.

    A folder that is gone altogether gives every file as `missing`.
    """
    result: list[TouchedFile] = []
    for pinned in pin.files:
        try:
            status = (Path(pin.folder) / pinned.path).stat()
        except OSError:
            result.append(TouchedFile(path=pinned.path, what="missing"))
            continue
        if status.st_size != pinned.size:
            result.append(TouchedFile(path=pinned.path, what="size"))
        elif status.st_mtime_ns != pinned.modified_ns:
            result.append(TouchedFile(path=pinned.path, what="time"))
    return result


def _pin_from(value: object) -> BasePin:
    """Build a pin from parsed JSON; ValueError with the reason if anything is not of its type."""
    top = _typed(value, dict, "the file")
    if top.get("schema") != SCHEMA or type(top.get("schema")) is not int:
        raise ValueError("it has no known schema")
    files: list[PinnedFile] = []
    for item in _typed(top.get("files"), list, "`files`"):
        row = _typed(item, dict, "a file")
        files.append(
            PinnedFile(
                path=str(safe_relative_path(row.get("path"))),
                size=_count(row.get("size"), "a file's size"),
                sha256=_hash(row.get("sha256")),
                modified_ns=_typed(row.get("modified_ns"), int, "a file's time"),
            )
        )
    paths = [file.path for file in files]
    if paths != sorted(set(paths)):
        raise ValueError("its files are not sorted or stand there twice")
    sizes = {file.path: file.size for file in files}
    tensors: dict[str, TensorEntry] = {}
    digests: dict[str, str] = {}
    for name, item in _typed(top.get("tensors"), dict, "`tensors`").items():
        row = _typed(item, dict, "a tensor")
        entry = TensorEntry(
            name=name,
            dtype=_typed(row.get("dtype"), str, "a dtype"),
            shape=tuple(_count(length, "a length") for length in _typed(row.get("shape"), list, "a shape")),
            shard=str(safe_relative_path(row.get("shard"))),
            start=_count(row.get("start"), "an offset"),
            end=_count(row.get("end"), "an offset"),
        )
        if entry.start > entry.end or entry.end > sizes.get(entry.shard, -1):
            raise ValueError(f"tensor {ascii(name)[:80]} lies outside its shard")
        tensors[name], digests[name] = entry, _hash(row.get("sha256"))
    edited = tuple(_typed(name, str, "an edited name") for name in _typed(top.get("edited"), list, "`edited`"))
    if not set(edited) <= tensors.keys():
        raise ValueError("it means to edit a tensor that it does not hold")
    return BasePin(
        source=_typed(top.get("source"), str, "`source`"),
        model=_typed(top.get("model"), str, "`model`"),
        revision=_optional_text(top.get("revision"), "`revision`"),
        folder=_typed(top.get("folder"), str, "`folder`"),
        files=tuple(files),
        tensors=dict(sorted(tensors.items(), key=lambda pair: (pair[1].shard, pair[1].start, pair[1].end))),
        tensor_sha256=digests,
        fingerprint=_hash(top.get("fingerprint")),
        family=_optional_text(top.get("family"), "`family`"),
        preset=_optional_text(top.get("preset"), "`preset`"),
        layers=tuple(_count(layer, "a layer") for layer in _typed(top.get("layers"), list, "`layers`")),
        edited=edited,
        extra=_typed(top.get("extra"), dict, "`extra`"),
    )


def _typed(value: object, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{what} is not of type {kind.__name__}")
    return value


def _optional_text(value: object, what: str) -> str | None:
    return None if value is None else str(_typed(value, str, what))


def _count(value: object, what: str) -> int:
    number: int = _typed(value, int, what)
    if not 0 <= number < 2**63:
        raise ValueError(f"{what} is out of range")
    return number


def _hash(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("a hash is not 64 hexadecimal digits")
    return value
