"""A disk that fails at the n-th call that writes to it: full, read-only, forbidden, or broken once.

Every way from Python to a file system is taken over in the process that asks for it: the functions of `os`, and the files that
`open` returns. Only what lies below one folder is concerned.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

GROWING = frozenset(("create", "write", "mkdir", "link"))
"""What needs room."""
NAMING = frozenset(("create", "open", "mkdir", "link", "rename", "remove", "change"))
"""What needs the right to write to a folder or a file; files that are open already go on."""
ALL = GROWING | NAMING | {"sync", "cut"}

KINDS: dict[str, tuple[str, frozenset[str], bool]] = {
    "nothing": ("", ALL, True),
    "full": ("ENOSPC", GROWING, True),
    "quota": ("EDQUOT", GROWING, True),
    "read-only": ("EROFS", ALL, True),
    "forbidden": ("EACCES", NAMING, True),
    "broken": ("EIO", ALL, False),
}
"""By kind of fault: the error, the calls that fail, and whether all of them do from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong.

    Attributes:
        folder: where.
        kind: one of `KINDS`.
        call: at the how manieth of the calls that can fail so, counted from 1.
    """

    folder: str
    kind: str = "nothing"
    call: int = 1

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


class Disk:
    """What is between a process and its disk."""

    def __init__(self, fault: Fault) -> None:
        self.folder = os.path.realpath(fault.folder)
        self.seen = dict.fromkeys(KINDS, 0)
        self.write = os.write
        self._fault = fault
        self._broken = False

    def meet(self, call: str, where: object, folder: int | None = None) -> None:
        """Count a call, and fail it if it is its turn."""
        path = self._path(where, folder)
        if path is None or not f"{path}/".startswith(f"{self.folder}/"):
            return
        for kind, (_, calls, _) in KINDS.items():
            self.seen[kind] += call in calls
        name, calls, lasting = KINDS[self._fault.kind]
        if not name or call not in calls or self.seen[self._fault.kind] < self._fault.call:
            return
        if lasting or not self._broken:
            self._broken = True
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number), path)

    def _path(self, where: object, folder: int | None) -> str | None:
        if isinstance(where, int):
            return _path_of(where)
        path = os.fsdecode(where)  # type: ignore[arg-type]
        start = os.getcwd() if folder is None else _path_of(folder)
        return None if start is None else os.path.normpath(os.path.join(start, path))


def _path_of(descriptor: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


def install(fault: Fault) -> Disk:
    """Put a faulty disk below this process, for the rest of its life."""
    disk = Disk(fault)

    def take_over(name: str, call: str, place: int = 0) -> None:
        original: Callable[..., Any] = getattr(os, name)

        def taken_over(*arguments: Any, **options: Any) -> Any:
            disk.meet(call, arguments[place], options.get("dir_fd"))
            return original(*arguments, **options)

        setattr(os, name, taken_over)

    for name in ("rename", "replace"):
        take_over(name, "rename", 1)
    for name in ("unlink", "remove", "rmdir"):
        take_over(name, "remove")
    for name in ("link", "symlink"):
        take_over(name, "link", 1)
    for name in ("write", "pwrite"):
        take_over(name, "write")
    for name in ("truncate", "ftruncate"):
        take_over(name, "cut")
    for name in ("chmod", "utime"):
        take_over(name, "change")
    take_over("mkdir", "mkdir")
    take_over("fsync", "sync")
    _take_over_open(disk)
    return disk


def _take_over_open(disk: Disk) -> None:
    os_open, file_open = os.open, io.open

    class Raw(io.FileIO):
        """A file whose every write is counted."""

        def write(self, data: Any) -> Any:
            disk.meet("write", self.fileno())
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            disk.meet("cut", self.fileno())
            return super().truncate(size)

    def counted_os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            there = os.path.lexists(path) if dir_fd is None else True
            disk.meet("open" if there else "create", path, dir_fd)
        return os_open(path, flags, mode, dir_fd=dir_fd)

    def counted_open(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        if "b" not in mode or not set(mode) & set("wax+"):
            # Nothing of reviver's is written as text.
            return file_open(file, mode, buffering, *more, **options)
        if not isinstance(file, int):
            disk.meet("open" if os.path.lexists(file) else "create", file)
        raw = Raw(file, mode.replace("b", ""))
        if buffering == 0:
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    os.open = counted_os_open  # type: ignore[assignment]
    io.open = builtins.open = counted_open
