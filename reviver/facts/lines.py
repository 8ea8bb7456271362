"""The lines of a file as text, each with its number, its length bounded and its faults named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from reviver.text import human_bytes

LINE_LIMIT = 1024 * 1024
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line with its end; with a fault, its text is only for showing, and only its beginning where it was cut."""

    number: int
    text: str
    fault: str | None = None
    cut: bool = False


def numbered_lines(stream: BinaryIO) -> Iterator[Line]:
    """Yield every line, reading no more than the limit of any."""
    number = offset = 0
    while raw := stream.readline(LINE_LIMIT + 1):
        number += 1
        length = len(raw)
        if length > LINE_LIMIT and not raw.endswith(b"\n"):
            length += _skip_line(stream)
            fault = f"a line of {human_bytes(length)}, where {human_bytes(LINE_LIMIT)} are allowed"
            yield Line(number=number, text=raw[:200].decode(errors="backslashreplace") + "…", fault=fault, cut=True)
        else:
            yield _decoded_line(raw, number, offset)
        offset += length


def _skip_line(stream: BinaryIO) -> int:
    length = 0
    while rest := stream.readline(LINE_LIMIT):
        length += len(rest)
        if rest.endswith(b"\n"):
            break
    return length


def _decoded_line(raw: bytes, number: int, offset: int) -> Line:
    if number == 1:
        bom = len(BOM) if raw.startswith(BOM) else 0
        raw, offset = raw[bom:], offset + bom
    fault = None
    if b"\0" in raw:
        fault = f"holds a NUL byte, at byte {offset + raw.index(0):,} of the file"
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        fault = not_utf8(raw[error.start], offset + error.start)
        text = raw.decode(errors="backslashreplace")
    return Line(number=number, text=text, fault=fault)


def not_utf8(byte: int, offset: int) -> str:
    """Return the message about the first byte of a file that is not UTF-8."""
    return f"not UTF-8: byte 0x{byte:02x} at byte {offset:,} of the file"
