"""Files that are either wholly there or not at all, hashes of their bytes, and paths that stay where they belong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from reviver.errors import ResourceError, UnsafePathError, UsageError

CHUNK_BYTES = 8 * 1024 * 1024
LINK_MODES = ("reflink", "hardlink", "symlink", "copy")

# The ioctl of Linux that lets one file share another's extents, copied on write (btrfs, XFS, bcachefs, overlays of
# them).
_FICLONE = 0x40049409
_PART = r"(?!\.{1,2}(?:/|$))[^\x00-\x1f\x7f\\/]+"
# No home folder and no drive at the beginning; then parts that neither are empty nor climb.
_SAFE_PATH = re.compile(rf"(?!~|.:)(?:{_PART}/)*{_PART}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def canonical_json(value: object) -> bytes:
    """Return the one byte form of a JSON value that is hashed: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def pretty_json(value: object) -> bytes:
    """Return the byte form of a JSON value for people and git: sorted keys, indented, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, *, advance: Callable[[float], None] | None = None) -> str:
    """Return the SHA-256 of a file's bytes; `advance` is told the size of every chunk read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable: a renamed file survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_path(path: Path) -> Path:
    """Return a fresh name beside `path` for a file that is being made: hidden, and ending in `.partial`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` only when the context ends without an error.

    The bytes go to a hidden `.partial` file in the same folder, unbuffered; at the end it is fsynced, renamed, and the
    folder is fsynced. The mode is the user's normal one. A link at `path` is replaced, never written through. After an
    error, or ^C, the old file is untouched and the partial one is gone; only a killed process leaves a `.partial` file.

    Raises:
        ResourceError: the disk is full or the folder cannot be written to.
    """
    temporary = partial_path(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                yield file
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def write_fully(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file (the operating system may take a part of it at a time)."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader, or a crash, sees the old bytes or the new ones and nothing between.

    Raises:
        ResourceError: the disk is full or the folder cannot be written to; the old file is untouched.
    """
    with atomic_file(path) as file:
        write_fully(file, data)


class _NotJsonError(ValueError):
    """A reason of our own, told from those of Python's reader."""


# Bytes that are nothing but `[],[],[]…` take thirty times as many as Python objects. These bounds are five times what the header
# of one shard of the largest models in the world needs, and far beyond every file that reviver writes.
_MOST_SIGNS = {b"{": 500_000, b"[": 1_000_000, b",": 4_000_000}


def parse_json(raw: bytes, *, lenient: bool = False) -> object:
    """Return the value of a JSON document that nobody vouches for.

    Args:
        raw: the bytes of the document.
        lenient: accept what Python's own reader accepts beyond the standard: NaN, infinities, repeated keys (the last
            one wins). `transformers` writes infinities into some `config.json`.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, absurdly many values, an absurdly long number, a key twice, half
            of a surrogate pair. The text is one line that fits after "the file is".
    """
    for sign, most in _MOST_SIGNS.items():
        if raw.count(sign) > most:
            raise ValueError(f"not JSON that can be read: it has more than {most:,} times `{sign.decode()}`")
    try:
        text = raw.decode("utf-8")
        if lenient:
            return json.loads(text)
        value = json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
        if _SURROGATE.search(raw):
            canonical_json(value)
        return value
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise ValueError("not JSON: it holds half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}"
        ) from None
    except _NotJsonError:
        raise
    except ValueError:
        raise ValueError("not JSON that can be read: a number is absurdly long") from None


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object that names a key twice: readers differ in which one they believe."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _NotJsonError(f"not JSON that can be trusted: the key {ascii(key)[:80]} stands there twice")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> object:
    raise _NotJsonError(f"not JSON: it holds {name}")


def disk_error(error: OSError, path: Path) -> ResourceError:
    """Return the error that tells a person what the operating system said about writing to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"no space left on the disk that holds `{path.parent}`",
            hint="free some space and run the command again; nothing was lost",
            path=path,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError(
            f"cannot write to `{path.parent}`: {error.strerror}",
            hint="make the folder writable, or choose another with `-C`",
            path=path,
        )
    return ResourceError(
        f"cannot write `{path}`: {error.strerror or error}", hint="check the disk and the path", path=path
    )


def link_file(source: Path, destination: Path, mode: str | None = None) -> str:
    """Let `destination` have the bytes of `source` in the cheapest way that works, and return the mode that was used.

    `source` is resolved first, so that a Hub snapshot's links lead to the blob itself. A symbolic link is absolute.
    `source` is only read, and `destination` is made beside its name and renamed, so that neither is ever opened for
    writing in place.

    Args:
        source: an existing file.
        destination: a name in an existing folder; replaced if it is there.
        mode: one of `LINK_MODES`, or None for the first of them that works.

    Raises:
        ResourceError: the forced mode does not work between these two places, or the disk is full.
        UsageError: there is no such mode.
    """
    if mode is not None and mode not in LINK_MODES:
        raise UsageError(f"unknown link mode `{mode}`", hint=f"choose one of {', '.join(LINK_MODES)}", mode=mode)
    resolved = source.resolve(strict=True)
    temporary = partial_path(destination)
    try:
        for candidate in (mode,) if mode is not None else LINK_MODES:
            try:
                _LINKERS[candidate](resolved, temporary)
                temporary.replace(destination)
                # Where both names already lead to one file, renaming does nothing and leaves the temporary name (POSIX).
                temporary.unlink(missing_ok=True)
                break
            except OSError as error:
                temporary.unlink(missing_ok=True)
                if candidate == "copy" or error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if mode is not None:
                    raise ResourceError(
                        f"no {candidate} can be made from `{resolved.parent}` to `{destination.parent}`: "
                        f"{error.strerror or error}",
                        hint="leave `--link-mode` out: the first mode that works is used",
                        path=destination,
                        mode=candidate,
                    ) from error
        fsync_folder(destination.parent)
    except OSError as error:
        raise disk_error(error, destination) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return candidate


def _reflink(source: Path, temporary: Path) -> None:
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "this system has no reflinks that reviver knows")
    import fcntl

    with source.open("rb") as reading:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.ioctl(descriptor, _FICLONE, reading.fileno())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _hardlink(source: Path, temporary: Path) -> None:
    temporary.hardlink_to(source)


def _symlink(source: Path, temporary: Path) -> None:
    temporary.symlink_to(source)


def _copy(source: Path, temporary: Path) -> None:
    with source.open("rb", buffering=0) as reading:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        with os.fdopen(descriptor, "wb", buffering=0) as writing:
            while chunk := reading.read(CHUNK_BYTES):
                write_fully(writing, chunk)
            os.fsync(writing.fileno())


_LINKERS: dict[str, Callable[[Path, Path], None]] = {
    "reflink": _reflink,
    "hardlink": _hardlink,
    "symlink": _symlink,
    "copy": _copy,
}


def safe_relative_path(text: object) -> PurePosixPath:
    """Return `text` as a path below a folder.

    Raises:
        UnsafePathError: as `check_relative_path`.
    """
    check_relative_path(text)
    return PurePosixPath(str(text))


def check_relative_path(text: object) -> None:
    """Refuse what is no path below a folder.

    Raises:
        UnsafePathError: it is not a string, is empty or absolute, climbs with `..`, or holds a backslash, a colon that
            could name a drive, or a control character.
    """
    if not isinstance(text, str) or not text or len(text) > 1024 or _SAFE_PATH.fullmatch(text) is None:
        raise UnsafePathError(
            f"unsafe path {ascii(text)[:80]}",
            hint="the file that names it is damaged or forged; get it again from where it came",
            path=text,
        )


def free_bytes(path: Path) -> int:
    """Return how many bytes are free on the disk that holds `path` (or its nearest parent that exists)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
