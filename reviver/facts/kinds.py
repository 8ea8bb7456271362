"""Which kind of file it is, by its content: JSON Lines, JSON or CSV; and the records of the first."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import BinaryIO

from reviver.facts.decoder import BadJsonError, StrictDecoder
from reviver.facts.document import FACTS, document_records
from reviver.facts.forms import FIELDS
from reviver.facts.lines import BOM, LINE_LIMIT, numbered_lines
from reviver.facts.records import RawRecord, UnreadableError, checked_record
from reviver.facts.table import table_records
from reviver.text import printable

HEAD_BYTES = LINE_LIMIT + 4096
DELIMITERS = ",;\t"
LINES_SUFFIXES = (".jsonl", ".ndjson")
_JSON_LINES = "jsonl"
_DOCUMENT = "json"
_OPENS_DOCUMENT = re.compile(r'\[\Z|\{(?:\Z|\s*"facts"\s*:)')
_OTHER_FILES = (
    (b"\xff\xfe", "it is UTF-16, not UTF-8"),
    (b"\xfe\xff", "it is UTF-16, not UTF-8"),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet, not text"),
    (b"\x1f\x8b", "it is compressed with gzip, not text"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd, not text"),
    (b"PAR1", "it is a Parquet file, not text"),
)


def read_records(stream: BinaryIO, head: bytes, suffix: str) -> Iterator[RawRecord]:
    """Yield the records of a file, whose first bytes are `head`; `suffix` settles what the content leaves open.

    Raises:
        UnreadableError: the file is none of the three kinds, or breaks off being one.
    """
    kind = recognise_kind(head, suffix)
    if kind == _JSON_LINES:
        return jsonl_records(stream)
    if kind == _DOCUMENT:
        return document_records(stream)
    return table_records(stream, delimiter=kind)


def recognise_kind(head: bytes, suffix: str) -> str:
    """Return `'jsonl'`, `'json'`, or for CSV its delimiter, from a file's first bytes.

    Raises:
        UnreadableError: it is none of them.
    """
    for magic, message in _OTHER_FILES:
        if head.startswith(magic):
            raise UnreadableError(1, message)
    lines = [line for line in head.removeprefix(BOM).decode(errors="replace").split("\n") if line.strip()]
    if not lines:
        return _JSON_LINES
    first = lines[0].strip()
    if first[0] in "[{":
        return _recognise_json(first, lines[1] if len(lines) > 1 else "", suffix)
    delimiter = _csv_delimiter(first, suffix)
    if delimiter:
        return delimiter
    if suffix in LINES_SUFFIXES or any(line.lstrip().startswith("{") for line in lines):
        return _JSON_LINES
    raise UnreadableError(1, f'neither JSON Lines nor JSON nor CSV: it begins with "{printable(first, 60)}"')


def _recognise_json(first: str, second: str, suffix: str) -> str:
    """Return the kind of a file whose first line (not blank) begins as an array or an object."""
    try:
        value, _ = StrictDecoder().decode_all(first)
    except BadJsonError as error:
        if _OPENS_DOCUMENT.match(first):
            return _DOCUMENT
        if suffix in LINES_SUFFIXES or (first[0] == second.lstrip()[:1] == "{"):
            return _JSON_LINES
        # A line that is JSON as far as it goes is the beginning of a document; another may still be a damaged record.
        breaks_off = error.position >= len(first)
        return _DOCUMENT if breaks_off or first[0] == "[" or suffix == ".json" else _JSON_LINES
    if isinstance(value, list):
        return _JSON_LINES if second else _DOCUMENT
    return _DOCUMENT if isinstance(value, dict) and isinstance(value.get(FACTS), list) else _JSON_LINES


def _csv_delimiter(header: str, suffix: str) -> str | None:
    """Return the delimiter that finds most known names in a header, or None where it is no header."""
    known = {delimiter: len(FIELDS & set(_header_names(header, delimiter))) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: known[delimiter])
    if known[best] >= 2 or suffix in (".csv", ".tsv"):
        return best
    return None


def _header_names(header: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    except csv.Error:
        return []


def jsonl_records(stream: BinaryIO) -> Iterator[RawRecord]:
    """Yield the record of every line that is not blank; a bad line is one record with faults."""
    decoder = StrictDecoder()
    for line in numbered_lines(stream):
        if line.fault:
            yield RawRecord(line=line.number, text=line.text, value={}, faults=(line.fault,))
        elif line.text.strip(" \t\r\n"):
            yield _record_of_text(decoder, line.number, line.text.strip(" \t\r\n"))


def _record_of_text(decoder: StrictDecoder, number: int, text: str) -> RawRecord:
    try:
        value, faults = decoder.decode_all(text)
    except BadJsonError as error:
        return RawRecord(line=number, text=text, value={}, faults=(f"{error.message}, column {error.position + 1}",))
    return checked_record(value, faults, line=number, text=text)
