"""Reading a file of facts: all of it is checked before anything else happens, and all that is wrong is told at once."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from reviver.errors import FactsError
from reviver.facts.checks import Gathering, OnConflict, Problem
from reviver.facts.fact import Fact
from reviver.facts.forms import EVERY_FORM, first_form, normalise
from reviver.facts.kinds import HEAD_BYTES, read_records
from reviver.facts.records import RawRecord, UnreadableError
from reviver.files import canonical_json
from reviver.text import human_bytes, plural, printable

FILE_LIMIT = 4 * 1024**3
SHOWN_PROBLEMS = 20
SHOWN_FAULTS = 5
SHOWN_FIELDS = 10
_STANDARD_INPUT = Path("-")
_WRITE_SOME = "write one fact a line, with `prompt`, `subject` and `target_new`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A record that was set aside: the line it begins on, why, and its text (its beginning, if it is too long)."""

    line: int
    reason: str
    record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FactFile:
    """What a file of facts holds.

    `form` is one of `forms.FORMS`; `duplicates` counts the repetitions that were dropped; every one of `warnings`
    is a line.
    """

    facts: tuple[Fact, ...]
    form: str
    warnings: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    duplicates: int = 0


def read_facts(path: Path, *, on_conflict: OnConflict = "error", skip_invalid: bool = False) -> FactFile:
    """Read and check a file of facts in any of the known forms: JSON Lines, JSON or CSV.

    Args:
        path: a file, or a pipe; `-` is the standard input.
        on_conflict: what becomes of facts with the same subject and prompt and different targets: `"error"` refuses the
            later ones, `"last"` lets the last one stand, at its own place.
        skip_invalid: set the records that cannot be used aside, in `rejected`, instead of refusing the file.

    Raises:
        FactsError: the file cannot be read, holds no usable fact, or (without `skip_invalid`) any record that cannot be
            used; `facts["problems"]` has every `Problem`, the message the first ones.
    """
    with _opened(path) as stream:
        reading = _FileReading(on_conflict, keep_rejected=skip_invalid)
        broken = reading.read(stream, path.suffix.lower())
    problems = reading.problems
    if broken:
        raise _refusal(path, problems, hint="correct the file and run the command again")
    if problems and not skip_invalid:
        raise _refusal(path, problems, hint=_hint(problems, reading.gathering))
    if not reading.gathering:
        if problems:
            raise _refusal(path, problems, hint="correct the file: not one of its records can be used")
        raise _unusable(path, "holds no facts", _WRITE_SOME)
    return FactFile(
        facts=reading.gathering.facts(),
        form=first_form(reading.forms),
        warnings=(*reading.gathering.warnings(), *reading.warnings()),
        rejected=tuple(reading.rejected),
        duplicates=reading.gathering.duplicates,
    )


def rejected_to_jsonl(rejected: tuple[Rejected, ...]) -> bytes:
    """Return the bytes of the file in which records that were set aside are kept: line, reason and text of each."""
    return b"".join(
        canonical_json({"line": one.line, "reason": one.reason, "record": one.record}) + b"\n" for one in rejected
    )


@dataclass(slots=True)
class _Note:
    count: int
    line: int


@dataclass(slots=True)
class _FileReading:
    """The state of reading one file: what was gathered, and what is to be told."""

    on_conflict: OnConflict
    keep_rejected: bool
    gathering: Gathering = field(init=False)
    forms: frozenset[str] = EVERY_FORM
    problems: list[Problem] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: dict[str, _Note] = field(default_factory=dict)
    unknown_fields: dict[str, _Note] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gathering = Gathering(self.on_conflict)

    def read(self, stream: BinaryIO, suffix: str) -> bool:
        """Take in every record; return whether the file broke off being readable."""
        try:
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            for record in read_records(stream, head, suffix):
                self._take(record)
        except UnreadableError as error:
            self.problems.append(Problem(line=error.line, message=error.message))
            return True
        return False

    def _take(self, record: RawRecord) -> None:
        if record.faults:
            self._reject(record, record.faults)
            return
        normalised = normalise(record.value)
        for name in normalised.unknown_fields:
            _count(self.unknown_fields, name, record.line)
        if normalised.fact is None:
            self._reject(record, normalised.faults)
            return
        if not self.forms & normalised.forms:
            here, before = first_form(normalised.forms), first_form(self.forms)
            self._reject(record, (f"the record has the form `{here}`, and those before it `{before}`",))
            return
        self.forms &= normalised.forms
        if fault := self.gathering.add(normalised.fact, record.line):
            self._reject(record, (fault,))
        else:
            for note in normalised.notes:
                _count(self.notes, note, record.line)

    def _reject(self, record: RawRecord, faults: tuple[str, ...]) -> None:
        message = "; ".join(faults[:SHOWN_FAULTS])
        if len(faults) > SHOWN_FAULTS:
            message += f"; and {len(faults) - SHOWN_FAULTS:,} more"
        if record.number is not None:
            message = f"record {record.number}: {message}"
        self.problems.append(Problem(line=record.line, message=message))
        if self.keep_rejected:
            self.rejected.append(Rejected(line=record.line, reason=message, record=record.text))

    def warnings(self) -> list[str]:
        lines = [f"{text}: {_seen(note)}" for text, note in self.notes.items()]
        names = sorted(self.unknown_fields)
        for name in names[:SHOWN_FIELDS]:
            seen = _seen(self.unknown_fields[name])
            lines.append(f"the field `{printable(name, 60)}` is unknown and not used: {seen}")
        if len(names) > SHOWN_FIELDS:
            lines.append(f"{len(names) - SHOWN_FIELDS:,} more unknown fields are not used")
        return lines


def _count(notes: dict[str, _Note], text: str, line: int) -> None:
    note = notes.get(text)
    if note is None:
        notes[text] = _Note(1, line)
    else:
        note.count += 1


def _seen(note: _Note) -> str:
    return f"{plural(note.count, 'record')}, the first on line {note.line}"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; a pipe, which cannot be gone back in, is read into memory.

    Raises:
        FactsError: there is no such file, it is a folder or a device, it is empty or too large, or the system does not
            let it be read.
    """
    try:
        with _open(path) as file:
            stream, size = _seekable(path, file)
            if size == 0:
                raise _unusable(path, "is empty", _WRITE_SOME)
            if size > FILE_LIMIT:
                limit = human_bytes(FILE_LIMIT)
                raise _unusable(path, f"is larger than {limit}", "split it and apply the parts one after another")
            yield stream
    except FileNotFoundError:
        raise _unusable(path, "does not exist", "check the path") from None
    except IsADirectoryError:
        raise _unusable(path, "is a folder", "give a file of facts in it") from None
    except PermissionError:
        raise _unusable(path, "may not be read", "make it readable for this user") from None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}", "check the path and the disk") from None


def _open(path: Path) -> BinaryIO:
    if path == _STANDARD_INPUT:
        if sys.stdin is None:
            raise _unusable(path, "cannot be read: the standard input is closed", "give a file of facts, or a pipe")
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return path.open("rb")
    except ValueError:
        # A path with a NUL or half of a surrogate pair is none that the system could be asked for.
        raise _unusable(path, "is not a path", "check the path") from None


def _seekable(path: Path, file: BinaryIO) -> tuple[BinaryIO, int]:
    """Return a stream with the bytes of `file` that can go back to its beginning, and its size."""
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode):
        return file, status.st_size
    if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
        data = file.read(FILE_LIMIT + 1)
        return io.BytesIO(data), len(data)
    raise _unusable(path, "is a device, not a file", "give a file of facts")


def _unusable(path: Path, what: str, hint: str) -> FactsError:
    return FactsError(f"`{printable(str(path))}` {what}", hint=hint, path=path, problems=())


def _refusal(path: Path, problems: list[Problem], *, hint: str) -> FactsError:
    """Return the error about the records of a file: a line for each of the first problems, below their count."""
    shown = printable(str(path))
    lines = [f"{shown}:{problem.line}: {problem.message}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"… and {len(problems) - SHOWN_PROBLEMS:,} more")
    if len(problems) > 1:
        lines.insert(0, f"{plural(len(problems), 'problem')} in `{shown}`")
    return FactsError("\n".join(lines), hint=hint, path=path, problems=tuple(problems))


def _hint(problems: list[Problem], gathering: Gathering) -> str:
    if gathering.contradictions == len(problems):
        return "keep one target of each, or let the last one stand with `--on-conflict last`"
    return "correct them, or set these records aside with `--skip-invalid`"
