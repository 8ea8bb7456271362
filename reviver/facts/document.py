"""The records of a JSON document: an array of them, an object with the array `facts`, or one object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from reviver.facts.decoder import BadJsonError, StrictDecoder, skip_space
from reviver.facts.lines import BOM, LINE_LIMIT, not_utf8
from reviver.facts.records import RawRecord, UnreadableError, checked_record
from reviver.text import human_bytes, printable

DOCUMENT_LIMIT = 1024**3
FACTS = "facts"


def document_records(stream: BinaryIO) -> Iterator[RawRecord]:
    """Yield the records of a document: those of an array, of an object's array `facts`, or the object itself.

    Raises:
        UnreadableError: it is too large, not UTF-8 or not JSON; the records before that place were yielded.
    """
    data = stream.read(DOCUMENT_LIMIT + 1)
    if len(data) > DOCUMENT_LIMIT:
        raise UnreadableError(1, f"a JSON document of more than {human_bytes(DOCUMENT_LIMIT)}: make it JSON Lines")
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        text = data[start:].decode()
    except UnicodeDecodeError as error:
        offset = start + error.start
        raise UnreadableError(data.count(b"\n", 0, offset) + 1, not_utf8(data[offset], offset)) from None
    return _Document(text).records()


class _Document:
    """A JSON document, walked from record to record so that each is known by its line."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._decoder = StrictDecoder()
        self._line = 1
        self._line_position = 0

    def records(self) -> Iterator[RawRecord]:
        """Yield the records from the first to the last."""
        self._skip()
        start = self._position
        if self._next() == "[":
            yield from self._array()
        elif self._next() == "{":
            yield from self._object(start)
        else:
            raise self._broken("a document must be an array of records or an object")
        self._skip()
        if self._position != len(self._text):
            raise self._broken("not valid JSON: more text after the end of the document")

    def _object(self, start: int) -> Iterator[RawRecord]:
        """Walk the object at the position: a record, unless it has the array `facts`."""
        record: dict[str, object] = {}
        faults: list[str] = []
        line = self._line_at(start)
        found = False
        self._expect("{")
        separator = "" if self._next() != "}" else self._expect("}")
        while separator != "}":
            name = self._name()
            if name in record:
                faults.append(f'the name "{printable(name, 60)}" is given twice in one object')
            if name == FACTS and self._next() == "[" and not found:
                found = True
                record[name] = None
                yield from self._array()
            else:
                record[name], more = self._value()
                faults += more
            separator = self._expect(",}")
        if not found:
            yield checked_record(record, faults, line=line, text=self._text[start : self._position], number=1)
        elif faults:
            raise UnreadableError(line, faults[0])

    def _array(self) -> Iterator[RawRecord]:
        self._expect("[")
        number = 0
        separator = "" if self._next() != "]" else self._expect("]")
        while separator != "]":
            self._skip()
            number += 1
            start = self._position
            line = self._line_at(start)
            value, faults = self._value()
            text = self._text[start : self._position]
            if len(text) > LINE_LIMIT:
                fault = f"a record of {human_bytes(len(text))}, where {human_bytes(LINE_LIMIT)} are allowed"
                yield RawRecord(line=line, text=text[:200] + "…", value={}, faults=(fault,), number=number)
            else:
                yield checked_record(value, faults, line=line, text=text, number=number)
            separator = self._expect(",]")

    def _name(self) -> str:
        if self._next() != '"':
            raise self._broken("not valid JSON: a name in double quotes is wanted")
        name, _ = self._value()
        self._expect(":")
        return str(name)

    def _value(self) -> tuple[object, list[str]]:
        self._skip()
        try:
            value, self._position, faults = self._decoder.decode(self._text, self._position)
        except BadJsonError as error:
            self._position = error.position
            raise self._broken(error.message) from None
        return value, faults

    def _next(self) -> str:
        """Return the next character that is not white space; none at the end."""
        self._skip()
        return self._text[self._position : self._position + 1]

    def _expect(self, characters: str) -> str:
        """Step over the next character, which must be one of these."""
        found = self._next()
        if not found or found not in characters:
            wanted = " or ".join(f"`{character}`" for character in characters)
            raise self._broken(f"not valid JSON: {wanted} is wanted")
        self._position += 1
        return found

    def _skip(self) -> None:
        self._position = skip_space(self._text, self._position)

    def _line_at(self, position: int) -> int:
        """Return the line of a position; positions may only go up, so that the text is counted once."""
        self._line += self._text.count("\n", self._line_position, position)
        self._line_position = position
        return self._line

    def _broken(self, message: str) -> UnreadableError:
        position = min(self._position, len(self._text))
        column = position - self._text.rfind("\n", 0, position)
        return UnreadableError(self._text.count("\n", 0, position) + 1, f"{message}, column {column}")
