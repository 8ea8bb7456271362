"""Arrays as one safetensors file: streamed, hashed in the same pass, and either wholly there or not at all.

The bytes follow from the arrays alone: no metadata, wider types first, then sorted by name, the header padded to 8 bytes, as the
safetensors library itself writes them. Its own writer is not used, because it leaves a file of a name that nobody knows where it
is killed, and tells of a full disk in an error of its own kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reviver.files import CHUNK_BYTES, atomic_file, write_fully

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {
    "b1": "BOOL",
    "u1": "U8",
    "i1": "I8",
    "i2": "I16",
    "i4": "I32",
    "i8": "I64",
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
}
"""How safetensors call the types of numpy."""


def write_tensor_file(path: Path, arrays: Mapping[str, Array]) -> tuple[int, str]:
    """Write a safetensors file, atomically and durably; returns its size and SHA-256.

    Raises:
        KeyError: an array has a type that `DTYPES` does not name.
        ResourceError: the disk is full or cannot be written.
    """
    digest = hashlib.sha256()
    size = 0
    with atomic_file(path) as file:
        for chunk in _chunks(dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))):
            write_fully(file, chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _chunks(arrays: Mapping[str, Array]) -> Iterator[bytes]:
    """Yield the bytes of the file in pieces of a few megabytes."""
    header: dict[str, object] = {}
    offset = 0
    for name, values in arrays.items():
        header[name] = {
            "dtype": DTYPES[values.dtype.str[1:]],
            "shape": list(values.shape),
            "data_offsets": [offset, offset + values.nbytes],
        }
        offset += values.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for values in arrays.values():
        rows = np.atleast_1d(values)
        step = max(1, CHUNK_BYTES * len(rows) // max(1, rows.nbytes))
        for first in range(0, len(rows), step):
            yield np.ascontiguousarray(rows[first : first + step], dtype=rows.dtype.newbyteorder("<")).tobytes()
