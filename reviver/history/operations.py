"""The operation log: what was done in this workspace, when, and from which head to which.

`.reviver/operations.jsonl` only grows. It is what `undo` reads, and what remembers numbers of versions that are gone.
One line is one operation; a last line without its newline is what a crash tore off, and counts as never written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reviver.errors import ManifestError
from reviver.files import canonical_json, disk_error, fsync_folder
from reviver.history.manifest import TIME, VERSION, VERSION_OR_BASE, is_version_name
from reviver.history.untrusted import DAMAGED_HINT, Fields, load_json, read_regular

SCHEMA = 1
MAXIMUM_LOG_BYTES = 1024 * 1024 * 1024
_VERB = re.compile(r"[a-z][a-z-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that was done."""

    number: int
    """1, 2, 3 … in the order of the log."""
    verb: str
    time: str
    head_before: str
    head_after: str
    version: str | None
    """The version that came to be, if one did."""
    detail: Mapping[str, Any]
    """What the verb wants to remember; `undo` keeps the number of the undone operation under `undoes`."""

    @property
    def arrivals(self) -> dict[str, str]:
        """By their names here, the names of the versions that an `import` brought from the other side."""
        found = self.detail.get("arrivals") if self.verb == "import" else None
        if not isinstance(found, dict):
            return {}
        return {name: str(there) for name, there in found.items() if is_version_name(name)}

    def outcome(self) -> str:
        """Return in one sentence, without a full stop, what is so now that it is done."""
        if self.version is not None:
            return made(self.version)
        if self.head_before != self.head_after:
            return f"the head is {self.head_after} now"
        return f"`{self.verb}` is done"

    def to_record(self) -> dict[str, Any]:
        """Return the operation as plain JSON values."""
        return {
            "schema": SCHEMA,
            "number": self.number,
            "verb": self.verb,
            "time": self.time,
            "head_before": self.head_before,
            "head_after": self.head_after,
            "version": self.version,
            "detail": dict(self.detail),
        }

    @classmethod
    def from_record(cls, value: object, where: str) -> Operation:
        """Read an operation; raises ManifestError where it is not one."""
        fields = Fields(value, where)
        fields.schema(SCHEMA)
        fields.only(("schema", *(name for name in cls.__slots__)))
        return cls(
            number=fields.integer("number", minimum=1),
            verb=fields.matching("verb", _VERB, "a verb"),
            time=fields.matching("time", TIME, "a time in UTC"),
            head_before=fields.matching("head_before", VERSION_OR_BASE, "the name of a version"),
            head_after=fields.matching("head_after", VERSION_OR_BASE, "the name of a version"),
            version=fields.optional("version", lambda key: fields.matching(key, VERSION, "the name of a version")),
            detail=fields.mapping("detail"),
        )


def made(version: str) -> str:
    """Return the sentence, without a full stop, that a version is there: whatever fails from then on, nobody makes it again."""
    return f"{version} is made and is the head"


def read_operations(path: Path) -> list[Operation]:
    """Return all operations, oldest first; none where there is no log yet.

    Raises:
        ManifestError: a line that is followed by another is damaged, or of a newer schema.
    """
    if not os.path.lexists(path):
        return []
    try:
        return _read_lines(path)
    except ManifestError as error:
        if error.hint == DAMAGED_HINT:
            error.hint = (
                "move `.reviver/operations.jsonl` away: only `undo` needs it, the history itself is in `edits/`"
            )
        raise


def _read_lines(path: Path) -> list[Operation]:
    lines = read_regular(path, limit=MAXIMUM_LOG_BYTES).split(b"\n")[:-1]
    operations: list[Operation] = []
    for index, line in enumerate(lines, start=1):
        where = f"operations.jsonl:{index}"
        operation = Operation.from_record(load_json(line, where), where)
        if operations and operation.number <= operations[-1].number:
            raise ManifestError(
                f"`{where}` has number {operation.number} after {operations[-1].number}",
                hint=DAMAGED_HINT,
            )
        operations.append(operation)
    return operations


def append_operation(path: Path, operation: Operation) -> None:
    """Write one operation at the end of the log, durably; what a crash left of an earlier line is cut off first.

    Raises:
        ResourceError: the disk is full or the log cannot be written.
    """
    line = canonical_json(operation.to_record()) + b"\n"
    try:
        made = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            end = _end_of_last_line(file.fileno())
            file.truncate(end)
            file.seek(end)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if made:
            fsync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def _end_of_last_line(descriptor: int) -> int:
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
