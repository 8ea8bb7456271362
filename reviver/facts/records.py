"""A record as it stands in a file, before anybody asks whether it is a fact."""

from __future__ import annotations

from dataclasses import dataclass

from reviver.facts.fields import type_name


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRecord:
    """One record as it stands in the file: the line it begins on, its text, and its value unless there are faults.

    `number` counts the records of a JSON document from 1; it is None where a line is a record.
    """

    line: int
    text: str
    value: dict[str, object]
    faults: tuple[str, ...] = ()
    number: int | None = None


class UnreadableError(Exception):
    """From here on the file cannot be taken apart into records."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def checked_record(value: object, faults: list[str], *, line: int, text: str, number: int | None = None) -> RawRecord:
    """Return the record of a decoded value, with a fault if that is no object."""
    if isinstance(value, dict):
        return RawRecord(line=line, text=text, value=value, faults=tuple(faults), number=number)
    fault = f"a record must be an object, not {type_name(value)}"
    return RawRecord(line=line, text=text, value={}, faults=(*faults, fault), number=number)
