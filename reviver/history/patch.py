"""The patch file of a version: float32 factors (or a dense delta) for every edited tensor, by its name on disk.

For a tensor `[D0, D1]`: `<name>.left [D0, R]` and `<name>.right [R, D1]`, or `<name>.dense [D0, D1]`. The bytes follow
from the deltas alone: tensors sorted by name, no metadata (`write_tensor_file`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reviver.checkpoint.delta import Delta, DenseDelta, Float32Array, LowRankDelta
from reviver.checkpoint.header import TensorEntry, read_header
from reviver.checkpoint.tensor_file import write_tensor_file
from reviver.errors import BaseMismatchError, CheckpointError, ManifestError, NumericsError
from reviver.files import CHUNK_BYTES
from reviver.history.untrusted import DAMAGED_HINT, open_regular, shown

LEFT, RIGHT, DENSE = ".left", ".right", ".dense"
# Larger factors are mapped instead of read, so that a long chain of large patches does not fill the memory.
_MAPPED_BYTES = 16 * 1024 * 1024
_LARGEST_SIZE = 2**31 - 1


def write_patch(path: Path, deltas: Mapping[str, Delta]) -> tuple[int, str]:
    """Write a patch file, atomically and durably; returns its size and SHA-256.

    Raises:
        NumericsError: a delta holds NaN or infinity; nothing is written.
        ManifestError: there is no delta, or one has no rows, columns or components.
        ResourceError: the disk is full or cannot be written.
    """
    arrays: dict[str, Float32Array] = {}
    for name, delta in deltas.items():
        if 0 in (*delta.shape, delta.rank):
            raise ManifestError(f"the delta of `{shown(name)}` is empty", tensor=name)
        if not delta.is_finite():
            raise NumericsError(
                f"the delta of `{shown(name)}` is not finite",
                hint="nothing was written; fewer facts in a round or another layer may help",
                tensor=name,
            )
        if isinstance(delta, LowRankDelta):
            arrays[name + LEFT], arrays[name + RIGHT] = delta.left, delta.right
        else:
            arrays[name + DENSE] = delta.values
    if not arrays:
        raise ManifestError("a patch must change at least one tensor")
    if len(arrays) != sum(2 if isinstance(delta, LowRankDelta) else 1 for delta in deltas.values()):
        raise ManifestError("two tensors of the patch would go by one name")
    return write_tensor_file(path, arrays)


@dataclass(frozen=True, slots=True)
class _Part:
    """The entries of one edited tensor: both factors, or the dense delta."""

    left: TensorEntry | None = None
    right: TensorEntry | None = None
    dense: TensorEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A patch file that was checked from end to end; from `Patch.open`."""

    path: Path
    size: int
    sha256: str
    _parts: Mapping[str, _Part]

    @classmethod
    def open(cls, path: Path) -> Patch:
        """Check a patch file that anybody may have written: names, dtypes and shapes, and that every value is finite.

        Raises:
            ManifestError: it is missing, no safetensors file, or holds anything but well-formed float32 deltas.
        """
        os.close(open_regular(path))
        where = f"{path.parent.name}/{path.name}"
        try:
            header = read_header(path, where)
        except CheckpointError as error:
            raise ManifestError(error.message, hint=DAMAGED_HINT, path=path) from error
        if header.metadata:
            # The order of metadata is not deterministic, so a patch with it could not be written again to the byte.
            raise ManifestError(f"`{shown(where)}` carries metadata; a patch has none", hint=DAMAGED_HINT, path=path)
        parts = _pair({entry.name: entry for entry in header.tensors}, where)
        size, sha256 = _hash_finite(path, header.header_bytes, where)
        return cls(path=path, size=size, sha256=sha256, _parts=parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The edited tensors, sorted."""
        return tuple(sorted(self._parts))

    def shape(self, name: str) -> tuple[int, int]:
        """Return `(D0, D1)` of an edited tensor."""
        part = self._parts[name]
        if part.left is not None and part.right is not None:
            return part.left.shape[0], part.right.shape[1]
        rows, columns = _dense(part).shape
        return rows, columns

    def rank(self, name: str) -> int | None:
        """Return R of the factors; None for a dense delta."""
        left = self._parts[name].left
        return None if left is None else left.shape[1]

    def delta(self, name: str) -> Delta:
        """Return what the patch adds to a tensor; large values are mapped from the file, read-only.

        Raises:
            KeyError: the patch does not edit this tensor.
            ManifestError: the file was changed since it was checked.
        """
        part = self._parts[name]
        if part.left is not None and part.right is not None:
            return LowRankDelta(self._values(part.left), self._values(part.right))
        return DenseDelta(self._values(_dense(part)))

    def deltas(self) -> dict[str, Delta]:
        """Return what the patch adds to every tensor it edits, by name."""
        return {name: self.delta(name) for name in self.names}

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that every edited tensor exists in the base with the same shape.

        Args:
            shapes: the shapes of the base's tensors by name.

        Raises:
            BaseMismatchError: a tensor is not there or has another shape: the patch was made for another base.
        """
        for name in self.names:
            if shapes.get(name) != self.shape(name):
                there = "has no such tensor" if name not in shapes else f"has it as {list(shapes[name])}"
                raise BaseMismatchError(
                    f"`{self.path.parent.name}/{self.path.name}` edits `{shown(name)}` as {list(self.shape(name))}; "
                    f"the base {there}",
                    hint="the patch was made for another base; use the workspace of that base",
                    tensor=name,
                )

    def _values(self, entry: TensorEntry) -> Float32Array:
        rows, columns = entry.shape
        if self.path.stat().st_size != self.size:
            raise ManifestError(f"`{shown(self.path)}` changed while it was read", hint=DAMAGED_HINT, path=self.path)
        if entry.nbytes > _MAPPED_BYTES and entry.start % 4 == 0:
            return np.memmap(self.path, dtype="<f4", mode="r", offset=entry.start, shape=(rows, columns))
        return np.fromfile(self.path, dtype="<f4", count=rows * columns, offset=entry.start).reshape(rows, columns)


def _dense(part: _Part) -> TensorEntry:
    if part.dense is None:
        raise ValueError("a part without factors must be dense")
    return part.dense


def _pair(entries: Mapping[str, TensorEntry], where: str) -> dict[str, _Part]:
    """Match left with right factors; refuse whatever is neither that nor a dense delta."""

    def refuse(name: str, why: str) -> ManifestError:
        return ManifestError(f"`{shown(name)}` in `{shown(where)}` {why}", hint=DAMAGED_HINT, tensor=name)

    parts: dict[str, _Part] = {}
    for name, entry in entries.items():
        if entry.dtype != "F32":
            raise refuse(name, f"has dtype {entry.dtype}, a patch holds F32")
        if len(entry.shape) != 2 or not all(0 < size <= _LARGEST_SIZE for size in entry.shape):
            raise refuse(name, "is not a matrix with something in it")
        tensor, dot, kind = name.rpartition(".")
        if not tensor or dot + kind not in (LEFT, RIGHT, DENSE):
            raise refuse(name, "is neither a `.left`, a `.right` nor a `.dense`")
        if kind == "right":
            if tensor + LEFT not in entries:
                raise refuse(name, "has no left factor")
            continue
        if tensor in parts:
            raise refuse(tensor, "is given twice, dense and as factors")
        if kind == "dense":
            parts[tensor] = _Part(dense=entry)
            continue
        right = entries.get(tensor + RIGHT)
        if right is None:
            raise refuse(name, "has no right factor")
        if len(right.shape) != 2 or entry.shape[1] != right.shape[0]:
            raise refuse(tensor, f"has factors that do not fit: {list(entry.shape)} and {list(right.shape)}")
        parts[tensor] = _Part(left=entry, right=right)
    if not parts:
        raise ManifestError(f"`{shown(where)}` edits nothing", hint=DAMAGED_HINT)
    return parts


def _hash_finite(path: Path, header_bytes: int, where: str) -> tuple[int, str]:
    """Return size and SHA-256 of the file, having looked at every value on the way."""
    digest = hashlib.sha256()
    size = header_bytes
    with path.open("rb") as file:
        digest.update(file.read(header_bytes))
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            # An F32-only file has a buffer of whole words, and the chunks are whole words too.
            if len(chunk) % 4 or not np.isfinite(np.frombuffer(chunk, dtype="<f4")).all():
                raise ManifestError(
                    f"`{shown(where)}` holds NaN or infinity",
                    hint="the patch is damaged or forged; do not use it",
                    path=path,
                )
    return size, digest.hexdigest()
