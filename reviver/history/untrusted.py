"""Reading what somebody else may have written: a cloned or pulled history, field by field, with typed errors only.

Everything below `edits/` may come from a stranger's repository. Whatever it holds, reading it ends in a value of the
promised type or in a `ManifestError` of one line.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from reviver.errors import ManifestError, ReviverError, UnsafePathError
from reviver.files import check_relative_path, parse_json
from reviver.text import human_bytes, printable

T = TypeVar("T")

DAMAGED_HINT = "get the file again from where it came; `reviver verify` lists everything that is damaged"
UPGRADE_HINT = "upgrade reviver (`pip install --upgrade reviver`), or use the one that wrote the file"
MAXIMUM_DEPTH = 32
MAXIMUM_INTEGER = 2**63 - 1
MAXIMUM_TEXT = 65536
"""Characters of a text of a person's own, such as a message."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def open_regular(path: Path, *, root: Path | None = None) -> int:
    """Open a file for reading and return its descriptor; the caller closes it.

    The file itself must not be a link, and with `root` it must lie below that folder once every link is followed.

    Raises:
        ManifestError: the file is missing, a link, a folder, a pipe or a device.
        UnsafePathError: a link on the way leads out of `root`.
    """
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise UnsafePathError(f"`{shown(path)}` leads out of `{shown(root)}`", hint=DAMAGED_HINT, path=path)
    try:
        # Without O_NONBLOCK a named pipe in the history would hang the reader for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ManifestError(f"`{shown(path)}` is missing", hint=DAMAGED_HINT, path=path) from error
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise ManifestError(f"`{shown(path)}` {what}", hint=DAMAGED_HINT, path=path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ManifestError(f"`{shown(path)}` is not a regular file", hint=DAMAGED_HINT, path=path)
    return descriptor


def read_regular(path: Path, *, limit: int, root: Path | None = None) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes.

    Raises:
        ManifestError: as `open_regular`, or the file is larger than `limit`.
    """
    with os.fdopen(open_regular(path, root=root), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ManifestError(f"`{shown(path)}` is larger than {human_bytes(limit)}", hint=DAMAGED_HINT, path=path)
    return data


def shown(path: Path | str) -> str:
    """Return a path (or name) safe and short enough for a message."""
    return printable(str(path), 200)


def load_json(data: bytes, where: str) -> Any:
    """Return the JSON value in `data`; `where` names the file in the error.

    Raises:
        ManifestError: not UTF-8, not JSON, nested too deep, a key twice in an object, NaN, infinity, an absurd number.
    """
    try:
        value = parse_json(data)
    except ValueError as error:
        raise ManifestError(f"`{shown(where)}` is {printable(str(error), 120)}", hint=DAMAGED_HINT) from error
    check_plain(value, where)
    return value


def check_plain(value: object, where: str) -> None:
    """Refuse a JSON value that cannot be written again: too deep, a lone surrogate, an integer beyond 64 bits, NaN."""
    # Level by level instead of by recursion: a history of a thousand versions has some hundred thousand values to look at.
    level = [value]
    for _ in range(MAXIMUM_DEPTH + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii():
                    _check_text(item, where)
            elif isinstance(item, dict):
                for key in item:
                    if not isinstance(key, str):
                        raise ManifestError(f"`{shown(where)}` holds a key that is not a string", hint=DAMAGED_HINT)
                    if not key.isascii():
                        _check_text(key, where)
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            elif item is not None and not isinstance(item, bool):
                _check_number(item, where)
        if not below:
            return
        level = below
    raise ManifestError(f"`{shown(where)}` is nested too deep", hint=DAMAGED_HINT)


def _check_number(value: object, where: str) -> None:
    if isinstance(value, int):
        if abs(value) > MAXIMUM_INTEGER:
            raise ManifestError(f"`{shown(where)}` holds a number beyond 64 bits", hint=DAMAGED_HINT)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ManifestError(f"`{shown(where)}` holds a number that is not finite", hint=DAMAGED_HINT)
    else:
        raise ManifestError(f"`{shown(where)}` holds a {type(value).__name__}, which JSON has not", hint=DAMAGED_HINT)


def _check_text(text: str, where: str) -> None:
    if _SURROGATE.search(text):
        raise ManifestError(f"`{shown(where)}` holds half a character (a lone surrogate)", hint=DAMAGED_HINT)


class Fields:
    """One JSON object that is read field by field; what is missing, surplus or of the wrong type is refused by name.

    The object comes from `load_json`, which has looked at every value in it.
    """

    __slots__ = ("_values", "_where")

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"`{shown(where)}` is not an object", hint=DAMAGED_HINT)
        self._values: dict[str, Any] = value
        self._where = where

    def only(self, known: Collection[str]) -> None:
        """Refuse a field that is not in `known`."""
        for key in self._values:
            if key not in known:
                raise ManifestError(f"`{shown(self._where)}` holds an unknown key `{shown(key)}`", hint=UPGRADE_HINT)

    def schema(self, supported: int) -> None:
        """Refuse a schema number that is newer than `supported`, or none at all."""
        number = self.integer("schema", minimum=1)
        if number > supported:
            raise ManifestError(
                f"`{shown(self._where)}` has schema {number}, newer than the {supported} that this reviver reads",
                hint=UPGRADE_HINT,
                schema=number,
            )

    def wrong(self, key: str, what: str) -> ManifestError:
        """Return the error for a field that is not `what` it should be."""
        return ManifestError(f"`{shown(key)}` in `{shown(self._where)}` is not {what}", hint=DAMAGED_HINT, key=key)

    def raw(self, key: str) -> Any:
        """Return a field of any type; refuse a missing one."""
        if key not in self._values:
            raise ManifestError(f"`{shown(self._where)}` has no `{shown(key)}`", hint=DAMAGED_HINT, key=key)
        return self._values[key]

    def text(self, key: str, *, limit: int = MAXIMUM_TEXT, empty: bool = True) -> str:
        """Return a string of at most `limit` characters."""
        value = self.raw(key)
        if not isinstance(value, str) or len(value) > limit or not (value or empty):
            raise self.wrong(key, "a string" if empty else "a string with something in it")
        return value

    def name(self, key: str) -> str:
        """Return a short string without control characters (the name of a tensor, an editor, a model)."""
        value = self.text(key, limit=1024, empty=False)
        if _CONTROL.search(value):
            raise self.wrong(key, "a name: it holds control characters")
        return value

    def matching(self, key: str, pattern: re.Pattern[str], what: str) -> str:
        """Return a string that matches `pattern` from end to end."""
        value = self.raw(key)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise self.wrong(key, what)
        return value

    def sha256(self, key: str) -> str:
        """Return a SHA-256 in lower-case hexadecimal."""
        return self.matching(key, _SHA256, "a SHA-256 in lower-case hexadecimal")

    def path(self, key: str) -> str:
        """Return a relative posix path that stays below its folder."""
        value = self.raw(key)
        check_relative_path(value)
        return str(value)

    def integer(self, key: str, *, minimum: int = 0, maximum: int = MAXIMUM_INTEGER) -> int:
        """Return an integer between the bounds; `true` is not one."""
        value = self.raw(key)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.wrong(key, f"an integer from {minimum} to {maximum}" if maximum < 2**53 else "a fitting integer")
        return value

    def number(self, key: str, *, minimum: float | None = None) -> float:
        """Return a finite number of at least `minimum`."""
        value = self.raw(key)
        if type(value) not in (int, float) or not math.isfinite(value) or (minimum is not None and value < minimum):
            raise self.wrong(key, "a finite number" if minimum is None else f"a finite number of at least {minimum:g}")
        return float(value)

    def boolean(self, key: str) -> bool:
        """Return true or false."""
        value = self.raw(key)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """Return a free-form object that can be written again as it is."""
        value = self.raw(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

    def items(self, key: str, *, limit: int = 1_000_000) -> list[Any]:
        """Return a list of at most `limit` values."""
        value = self.raw(key)
        if not isinstance(value, list) or len(value) > limit:
            raise self.wrong(key, "a list" if not isinstance(value, list) else f"a list of at most {limit:,} entries")
        return value

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """Return None where the field is null, else what `read` makes of it; a missing field is refused."""
        return None if self.raw(key) is None else read(key)


def problem_of(error: ReviverError) -> str:
    """Return an error's message as one printable line, for a list of findings."""
    return printable(error.message, 300)
