"""The workspace's lock: a kernel lock (flock), so that a dead process holds nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import LockedError, ResourceError
from reviver.files import canonical_json, disk_error
from reviver.history.manifest import now
from reviver.text import printable

_HOLDER_BYTES = 4096
_ATTEMPTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock; for messages only, the kernel decides."""

    pid: int
    host: str
    verb: str
    since: str


@dataclass(slots=True)
class _Held:
    descriptor: int
    process: int
    thread: int
    depth: int


_held: dict[str, _Held] = {}
_registry = threading.Lock()


def read_holder(path: Path) -> Holder | None:
    """Return who wrote their name into the lock file last, living or dead; None where that cannot be told."""
    try:
        with path.open("rb") as file:
            record = json.loads(file.read(_HOLDER_BYTES))
        return Holder(
            pid=int(record["pid"]),
            host=printable(str(record["host"]), 100),
            verb=printable(str(record["verb"]), 40),
            since=printable(str(record["since"]), 40),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def is_held(path: Path) -> bool:
    """Tell whether the current thread holds the lock on `path`."""
    held = _held.get(_key(path))
    # A forked child inherits this table, but must not believe that it is the writer.
    return held is not None and (held.process, held.thread) == (os.getpid(), threading.get_ident())


def current_holder(path: Path) -> Holder | None:
    """Return who holds the lock on `path` at this moment; None where nobody does. Needs no right to write."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # Shared, so that two lookers don't see each other; a writer who comes in this instant tries again.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_holder(path) or Holder(pid=0, host="?", verb="?", since="?")
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


@contextmanager
def locked(path: Path, verb: str) -> Iterator[bool]:
    """Hold the exclusive lock on `path`; yields True where this call took it, False where the thread held it already.

    Raises:
        LockedError: another living process (or thread) holds it.
        ResourceError: the folder cannot be written to, or its file system has no locks.
    """
    key = _key(path)
    if is_held(path):
        held = _held[key]
        held.depth += 1
        try:
            yield False
        finally:
            held.depth -= 1
        return
    descriptor = _acquire(path, verb)
    with _registry:
        _held[key] = _Held(descriptor, os.getpid(), threading.get_ident(), 1)
    try:
        yield True
    finally:
        with _registry:
            del _held[key]
        # Closing gives the lock back; the file stays: without it two processes could lock two files of one name.
        os.close(descriptor)


def _key(path: Path) -> str:
    return str(path.resolve())


def _acquire(path: Path, verb: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        _lock(descriptor)
        _write_holder(descriptor, verb)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _locked_error(path) from error
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise ResourceError(
                f"the file system of `{path.parent}` has no locks",
                hint="put the workspace on a local disk, or mount the share with locking",
                path=path,
            ) from error
        raise disk_error(error, path) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_holder(descriptor: int, verb: str) -> None:
    """Say in the lock's file who holds it, where that can be: `gc` must be able to run on a disk without a free byte."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "verb": verb, "since": now()}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, canonical_json(holder) + b"\n", 0)


def _lock(descriptor: int) -> None:
    """Take the lock; tries a few times, because `current_holder` of another process holds it for microseconds."""
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.02)


def _locked_error(path: Path) -> LockedError:
    holder = read_holder(path)
    if holder is None:
        who = "another process"
    else:
        who = f"`reviver {holder.verb}` (process {holder.pid} on {holder.host}, since {holder.since})"
    return LockedError(
        f"the workspace is in use by {who}",
        hint="wait until it ends, or end it; a lock is never left behind by a dead process",
        holder=holder,
        path=path,
    )
