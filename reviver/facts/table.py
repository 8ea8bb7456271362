"""The records of a CSV file: a header of field names, and a row a record."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from reviver.facts.decoder import BadJsonError, StrictDecoder
from reviver.facts.forms import JSON_FIELDS
from reviver.facts.lines import Line, numbered_lines
from reviver.facts.records import RawRecord, UnreadableError
from reviver.text import printable


def table_records(stream: BinaryIO, *, delimiter: str) -> Iterator[RawRecord]:
    """Yield the record of every row below the header; a cell that is empty is a field that is absent.

    Lists stand in cells as JSON. A quoted cell may hold line breaks; a record's line is the one its row begins on.

    Raises:
        UnreadableError: the header lacks what every record needs, or names a column twice.
    """
    table = _Table(stream, delimiter)
    header: list[str] | None = None
    for row in table.rows():
        if header is None:
            header = _checked_header(row)
        else:
            yield _record_of_row(header, row)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    line: int
    text: str
    cells: list[str]
    fault: str | None


class _Table:
    """The rows of a CSV file that are not blank, each with the line it begins on and the fault of its lines."""

    def __init__(self, stream: BinaryIO, delimiter: str) -> None:
        self._stream = stream
        self._delimiter = delimiter
        self._lines: list[Line] = []

    def rows(self) -> Iterator[_Row]:
        reader = csv.reader(self._texts(), delimiter=self._delimiter, strict=True)
        while True:
            self._lines.clear()
            cells: list[str] = []
            fault = None
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                unclosed = "unexpected end of data" in str(error)
                fault = "a quote is opened in this row and never closed" if unclosed else f"not valid CSV: {error}"
            fault = next((line.fault for line in self._lines if line.fault), fault)
            if fault or any(cell.strip() for cell in cells):
                text = "".join(line.text for line in self._lines).rstrip("\r\n")
                yield _Row(line=self._lines[0].number, text=text, cells=cells, fault=fault)

    def _texts(self) -> Iterator[str]:
        for line in numbered_lines(self._stream):
            self._lines.append(line)
            # A row with such a line is refused whatever it holds; a quote in the part that is there opens nothing.
            yield "\n" if line.cut else line.text


def _checked_header(row: _Row) -> list[str]:
    if row.fault:
        raise UnreadableError(row.line, row.fault)
    names = [name.strip() for name in row.cells]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UnreadableError(row.line, f'the header names the column "{printable(name, 60)}" twice')
    missing = [name for name in ("prompt", "subject", "target_new") if name not in names]
    if missing and "requested_rewrite" not in names:
        raise UnreadableError(row.line, f"the header lacks {', '.join(f'`{name}`' for name in missing)}")
    return names


def _record_of_row(header: list[str], row: _Row) -> RawRecord:
    if row.fault:
        return RawRecord(line=row.line, text=row.text, value={}, faults=(row.fault,))
    if len(row.cells) != len(header):
        fault = f"a row of {len(row.cells)} cells, where the header has {len(header)}"
        return RawRecord(line=row.line, text=row.text, value={}, faults=(fault,))
    record: dict[str, object] = {name: cell for name, cell in zip(header, row.cells, strict=True) if cell.strip()}
    faults: list[str] = []
    decoder = StrictDecoder()
    for name in JSON_FIELDS & record.keys():
        try:
            record[name], more = decoder.decode_all(str(record[name]))
        except BadJsonError:
            faults.append(f'`{name}` must be JSON, such as ["…", "…"]')
        else:
            faults += more
    return RawRecord(line=row.line, text=row.text, value=record, faults=tuple(faults))
