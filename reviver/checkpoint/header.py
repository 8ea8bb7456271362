"""The header of a safetensors file: which tensor lies at which bytes, read without trusting a byte of it.

A file is an unsigned 64-bit little-endian length, a JSON object of that length, and a buffer. Offsets in the JSON are
relative to the buffer; the tensors fill it without holes, overlaps or trailing bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import CheckpointError
from reviver.files import parse_json
from reviver.text import printable

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on the length of the JSON."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element, for every dtype that safetensors 0.8 knows. An unknown dtype is carried, its size unchecked."""

DTYPE_BYTES = {dtype: bits // 8 for dtype, bits in DTYPE_BITS.items() if bits % 8 == 0}
"""Bytes of one element, for the dtypes whose elements are whole bytes."""

_MAX_COUNT = 2**63 - 1
_HINT = "the file is damaged or incomplete: fetch it again, or ask whoever made it"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: `start` and `end` are absolute byte offsets in the file `shard`."""

    name: str
    dtype: str
    """As written in the header: `BF16`, `F16`, `F32`, …"""
    shape: tuple[int, ...]
    shard: str
    """The file's path relative to its checkpoint's folder, with forward slashes."""
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardHeader:
    """What the header of one safetensors file says."""

    path: Path
    size: int
    """Bytes of the whole file."""
    header_bytes: int
    """Bytes before the buffer: the length word and the JSON."""
    tensors: tuple[TensorEntry, ...]
    """In the order of their offsets."""
    metadata: dict[str, str]


def read_header(path: Path, shard: str) -> ShardHeader:
    """Read and check the header of a safetensors file.

    Args:
        path: the file.
        shard: what to call it: its path relative to the checkpoint's folder.

    Raises:
        CheckpointError: the file cannot be read, or is not a whole and consistent safetensors file; the message names
            the file and, where there is one, the tensor.
    """
    shown = printable(shard, 120)
    try:
        status = path.stat()
        # A named pipe in place of a file would be waited on for ever.
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"`{shown}` is not a file", hint=_HINT, path=path)
        with path.open("rb") as file:
            size = status.st_size
            if size < 8:
                raise _broken(path, shown, f"{size} bytes are too few for a safetensors file")
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise _broken(path, shown, f"its header claims {length:,} bytes, more than the format's 100 MB")
            if length > size - 8:
                raise _broken(
                    path, shown, f"its header claims {length:,} bytes and the file has {size - 8:,} after the length"
                )
            raw = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"`{shown}` is not there", hint="fetch the checkpoint again", path=path) from None
    except OSError as error:
        raise CheckpointError(
            f"`{shown}` cannot be read: {error.strerror or error}", hint="check the path and its permissions", path=path
        ) from error
    if len(raw) != length:
        raise _broken(path, shown, "it became shorter while it was read")
    table, metadata = _parse_table(path, shown, raw)
    tensors = tuple(
        sorted(
            (_entry(path, shown, shard, name, value, length + 8) for name, value in table.items()),
            key=lambda entry: (entry.start, entry.end),
        )
    )
    _check_coverage(path, shown, tensors, length + 8, size)
    return ShardHeader(path=path, size=size, header_bytes=length + 8, tensors=tensors, metadata=metadata)


def _broken(path: Path, shown: str, why: str, **facts: object) -> CheckpointError:
    return CheckpointError(f"`{shown}` is not a whole safetensors file: {why}", hint=_HINT, path=path, **facts)


def _parse_table(path: Path, shown: str, raw: bytes) -> tuple[dict[str, object], dict[str, str]]:
    """Split the JSON into the table of tensors and the file's metadata."""
    if not raw.startswith(b"{"):
        raise _broken(path, shown, "its header does not begin with `{`")
    try:
        table = parse_json(raw)
    except ValueError as error:
        raise _broken(path, shown, f"its header is {error}") from None
    except MemoryError:
        raise _broken(path, shown, "its header does not fit in memory") from None
    if not isinstance(table, dict):
        raise _broken(path, shown, "its header is not a JSON object")
    metadata = table.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, shown, "its `__metadata__` is not a map of text to text")
    return table, metadata


def _entry(path: Path, shown: str, shard: str, name: str, value: object, buffer_start: int) -> TensorEntry:
    """Turn one line of the table into an entry, with every type and the size checked."""
    label = printable(name, 120)

    def wrong(why: str) -> CheckpointError:
        return _broken(path, shown, f"tensor `{label}` {why}", tensor=name)

    try:
        name.encode()
    except UnicodeEncodeError:
        raise wrong("has a name that is not Unicode text") from None
    if not isinstance(value, dict):
        raise wrong("is not described by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not dtype or len(dtype) > 32 or not dtype.isascii():
        raise wrong("has no dtype")
    if not isinstance(shape, list) or not all(_is_count(length) for length in shape):
        raise wrong("has a shape that is not a list of counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise wrong("has offsets that are not two counts")
    first, last = offsets
    if first > last:
        raise wrong("ends before it begins")
    elements = 1
    for length in shape:
        # Checked at each step, as the reference reader does: the product of a hostile shape has millions of digits.
        elements *= length
        if elements > _MAX_COUNT:
            raise wrong("has an absurd shape")
    bits = DTYPE_BITS.get(dtype)
    if bits is not None and elements * bits != (last - first) * 8:
        raise wrong(f"has {last - first:,} bytes, and its shape and dtype {dtype} need {(elements * bits + 7) // 8:,}")
    return TensorEntry(
        name=name, dtype=dtype, shape=tuple(shape), shard=shard, start=buffer_start + first, end=buffer_start + last
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _check_coverage(path: Path, shown: str, tensors: tuple[TensorEntry, ...], buffer_start: int, size: int) -> None:
    """Check that the tensors fill the buffer from its first byte to its last, each byte once."""
    position = buffer_start
    for entry in tensors:
        label = printable(entry.name, 120)
        if entry.start < position:
            raise _broken(path, shown, f"tensor `{label}` overlaps the one before it", tensor=entry.name)
        if entry.start > position:
            raise _broken(
                path,
                shown,
                f"a hole of {entry.start - position:,} bytes lies before tensor `{label}`",
                tensor=entry.name,
            )
        if entry.end > size:
            raise _broken(
                path, shown, f"tensor `{label}` ends at byte {entry.end:,} of a file of {size:,}", tensor=entry.name
            )
        position = entry.end
    if position != size:
        raise _broken(path, shown, f"{size - position:,} bytes lie after the last tensor")
