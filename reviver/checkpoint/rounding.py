"""The exact real sum of a base tensor and its deltas, rounded once to the stored dtype: what defines a version's bytes.

An entry of a version is `w + Σ left_i·right_i`, a sum of the base's value and of products of float32 factors. A first pass computes
it in float32 or float64 with BLAS and bounds its error for every order of summation, with or without fused multiply-add:

    |x − s| ≤ γ_n Σ|terms|,   γ_n = n·u / (1 − n·u),   u = 2⁻²⁴ or 2⁻⁵³      (Higham, Accuracy and Stability, 2002, section 3.1)

An entry whose whole interval rounds to one value is settled by it. The few others go through closer sums to the exact one
(`settle`). So the bytes don't depend on the machine, the BLAS, the number of threads or the order of the chain.

A defined result for the special values: where the exact delta is zero, the base's bytes are kept (−0, NaN and infinities too); a
sum that cancels to zero is +0; a NaN or infinity that a delta would touch, and an overflow, are refused.

Axes: `D0`, `D1` the lengths on disk, `R` the rank of one delta, `K` the number of low-rank deltas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reviver.checkpoint.delta import Delta, DenseDelta, LowRankDelta
from reviver.checkpoint.floats import (
    FloatFormat,
    bits_of_normal,
    check_processor,
    decode,
    encode,
    format_of,
    single_from_bits,
)
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.settle import Bounds, Doubtful, bounds_of, settle
from reviver.errors import BaseMismatchError, NumericsError
from reviver.text import printable

__all__ = ["BLOCK_BYTES", "decode", "encode", "rounded_sum", "rows_per_block", "tensor_chunks"]

BLOCK_BYTES = 32 * 1024 * 1024
"""The float64 block that is worked on at a time; rows are never split, so one row may be more."""

# The elementwise passes run over pieces of this size: small enough for a core's cache, large enough for numpy.
_PIECE_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Working:
    """The arithmetic of a first pass."""

    dtype: type[np.floating[Any]]
    integer: type[np.signedinteger[Any]]
    fraction_bits: int
    underflow: float
    """What one term may lose to underflow, even where a BLAS flushes subnormal numbers to zero."""

    @property
    def unit_roundoff(self) -> float:
        return 2.0 ** -(self.fraction_bits + 1)


_SINGLE = _Working(dtype=np.float32, integer=np.int32, fraction_bits=23, underflow=2.0**-124)
# Sums of float32 values and of their products are multiples of 2⁻²⁹⁸: float64 never underflows here.
_DOUBLE = _Working(dtype=np.float64, integer=np.int64, fraction_bits=52, underflow=0.0)

# With more terms than this the float32 interval is too wide for most entries to be settled.
_TERMS_IN_SINGLE = 1024


def rounded_sum(
    base_raw: bytes | memoryview,
    dtype: str,
    deltas: Sequence[Delta],
    *,
    name: str = "the tensor",
    first_row: int = 0,
) -> bytes:
    """Return the bytes of the base plus all deltas, the exact sum rounded once, half to even.

    Args:
        base_raw: the base's bytes, `[D0, D1]` row-major little-endian.
        dtype: `BF16`, `F16` or `F32`.
        deltas: the chain, each `[D0, D1]`; the order does not matter.
        name: what to call the tensor in an error.
        first_row: the number of the first row in the tensor, for errors about a part of it.

    Raises:
        NumericsError: a factor or a result is NaN or infinite, with the place of the first.
        UnsupportedModelError: another dtype.
        ValueError: the shapes don't fit.
    """
    form = format_of(dtype)
    size = np.frombuffer(base_raw, form.storage).size
    if deltas and (any(delta.shape != deltas[0].shape for delta in deltas) or size != np.prod(deltas[0].shape)):
        raise ValueError(f"the shapes don't fit: {size} values, deltas {[delta.shape for delta in deltas]}")
    if not deltas or size == 0:
        return bytes(base_raw)
    height, width = deltas[0].shape
    bounds = bounds_of(deltas, name)
    view, row_bytes = memoryview(base_raw).cast("B"), width * np.dtype(form.storage).itemsize
    step = rows_per_block(width)
    return b"".join(
        _round_rows(
            view[first * row_bytes : (first + step) * row_bytes],
            form,
            [delta.rows(first, min(first + step, height)) for delta in deltas],
            bounds.rows(first, min(first + step, height)),
            name,
            first_row + first,
        )
        for first in range(0, height, step)
    )


def tensor_chunks(
    folder: CheckpointFolder, name: str, deltas: Sequence[Delta], *, base_sha256: str | None = None
) -> Iterator[bytes]:
    """Yield the new bytes of a tensor, a block of rows at a time, reading the base as it goes.

    Args:
        folder: the base.
        name: the tensor's name on disk.
        deltas: the chain; with none, the base's bytes are yielded.
        base_sha256: the pinned hash of the base's bytes of this tensor; checked before the last block is yielded.

    Raises:
        BaseMismatchError: a delta has another shape, or the base's bytes are not the pinned ones.
        NumericsError, UnsupportedModelError: see `rounded_sum` and `CheckpointFolder.check_editable`.
    """
    entry = folder.check_editable(name)
    height, width = entry.shape
    label = f"tensor `{printable(name, 120)}`"
    check_shapes(name, (height, width), deltas)
    form = format_of(entry.dtype)
    bounds = bounds_of(deltas, label) if deltas else None
    digest = hashlib.sha256()
    step = rows_per_block(width)
    for first in range(0, height, step):
        last = min(first + step, height)
        raw = folder.read_rows(name, first, last)
        if base_sha256 is not None:
            digest.update(raw)
            if last == height and digest.hexdigest() != base_sha256:
                raise BaseMismatchError(
                    f"{label} of the base is not the one that was pinned",
                    hint="fetch the base again, or build on this one in another workspace: `reviver init MODEL DIR`",
                    tensor=name,
                )
        if bounds is None:
            yield raw
        else:
            parts = [delta.rows(first, last) for delta in deltas]
            yield _round_rows(memoryview(raw), form, parts, bounds.rows(first, last), label, first)


def check_shapes(name: str, shape: tuple[int, ...], deltas: Sequence[Delta]) -> None:
    """Check that every delta has the shape of its tensor on disk.

    Raises:
        BaseMismatchError: one has not.
    """
    for delta in deltas:
        if delta.shape != shape:
            raise BaseMismatchError(
                f"tensor `{printable(name, 120)}` is {list(shape)} in the base and {list(delta.shape)} in the patch",
                hint="the patch was made for another base",
                tensor=name,
            )


def rows_per_block(width: int) -> int:
    """Return how many rows of `width` entries make one block."""
    return max(1, BLOCK_BYTES // (8 * max(1, width)))


def _round_rows(
    base_raw: memoryview, form: FloatFormat, deltas: Sequence[Delta], bounds: Bounds, name: str, first_row: int
) -> bytes:
    """Return the new bytes of a block of rows; `deltas` and `bounds` are these rows' own."""
    check_processor()
    height, width = deltas[0].shape
    bits = np.frombuffer(base_raw, form.storage).reshape(height, width)
    result = np.empty((height, width), form.storage)
    # Float32 has the bits to spare for the short formats, at half the cost; it is not enough where a chain is long or cancels.
    single = form.fraction_bits < 16 and bounds.terms <= _TERMS_IN_SINGLE
    doubtful = _first_pass(bits, form, deltas, bounds, _SINGLE if single else _DOUBLE, result)
    if single and doubtful.rows.size * bounds.terms > 4 * bits.size:
        doubtful = _first_pass(bits, form, deltas, bounds, _DOUBLE, result)
    if doubtful.rows.size:
        result[doubtful.rows, doubtful.columns] = settle(bits, doubtful, deltas, bounds, form, name, first_row)
    infinite = (result & form.infinity) == form.infinity
    if infinite.any():
        # A NaN or infinity of the base that no delta touches stays.
        infinite &= result != bits
        if infinite.any():
            row, column = np.argwhere(infinite)[0]
            raise NumericsError(
                f"{name} overflows {form.dtype} at row {first_row + int(row)}, column {int(column)}",
                hint="the edit is far too large; nothing was written",
            )
    return result.tobytes()


def _first_pass(
    bits: NDArray[Any],
    form: FloatFormat,
    deltas: Sequence[Delta],
    bounds: Bounds,
    working: _Working,
    result: NDArray[Any],
) -> Doubtful:
    """Fill `result` with the rounded sums, and return the entries that this does not settle."""
    unit = working.unit_roundoff
    total = _sum_of(deltas, working)
    # The products (where they are rounded), the additions of the terms and of the deltas, and six units for the base's own
    # addition, for the rounding of x ± e, and for the evaluation of the error itself, together with the factor 1 + 2⁻⁸.
    coefficient = (bounds.terms + len(deltas) + 6) * unit * (1 + 2.0**-8)
    floor = np.finfo(working.dtype).tiny
    rows_DK = np.where(bounds.rows_DK > 0, np.maximum(bounds.rows_DK * coefficient, floor), 0).astype(working.dtype)
    columns_KE = np.where(bounds.columns_KE > 0, np.maximum(bounds.columns_KE, floor), 0).astype(working.dtype)
    least = working.dtype((bounds.terms + len(deltas)) * working.underflow)
    dense = [delta.values for delta in deltas if isinstance(delta, DenseDelta)]
    found: list[tuple[NDArray[np.intp], NDArray[Any], NDArray[Any]]] = []
    step = max(1, _PIECE_BYTES // (total.itemsize * bits.shape[1]))
    for first in range(0, bits.shape[0], step):
        rows = slice(first, first + step)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            base = single_from_bits(bits[rows], form)
            x = total[rows]
            x += base
            error = np.abs(base).astype(working.dtype, copy=False)
            error *= working.dtype(2 * unit * (1 + 2.0**-8))
            error += least
            for number in range(rows_DK.shape[1]):
                error += rows_DK[rows, number, None] * columns_KE[number]
            for values in dense:
                error += np.abs(values[rows]) * working.dtype(coefficient)
            settled = _round_settled(x, error, form, working, result[rows])
        places = np.flatnonzero(~settled)
        if places.size:
            flat = x.reshape(-1)[places], error.reshape(-1)[places]
            found.append((places + first * bits.shape[1], *flat))
    places, x, error = (
        (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else (np.zeros(0, np.intp),) * 3
    )
    rows_of, columns_of = np.divmod(places, bits.shape[1])
    return Doubtful(rows=rows_of, columns=columns_of, x=x.astype(np.float64), error=error.astype(np.float64))


def _sum_of(deltas: Sequence[Delta], working: _Working) -> NDArray[Any]:
    """Return the sum of the deltas as computed, `[D0, D1]`; long factors are converted a part at a time."""
    height, width = deltas[0].shape
    step = rows_per_block(width)
    total: NDArray[Any] | None = None
    scratch: NDArray[Any] | None = None
    with np.errstate(all="ignore"):
        for delta in deltas:
            if not isinstance(delta, LowRankDelta):
                continue
            for first in range(0, delta.rank, step):
                left = delta.left[:, first : first + step].astype(working.dtype, copy=False)
                right = delta.right[first : first + step].astype(working.dtype, copy=False)
                if total is None:
                    total = np.matmul(left, right)
                else:
                    scratch = np.matmul(left, right, out=scratch)
                    total += scratch
        if total is None:
            total = np.zeros((height, width), working.dtype)
        for delta in deltas:
            if isinstance(delta, DenseDelta):
                total += delta.values
    return total


def _round_settled(
    x: NDArray[Any], error: NDArray[Any], form: FloatFormat, working: _Working, result: NDArray[Any]
) -> NDArray[np.bool_]:
    """Round all entries to nearest, and tell which of them are settled: `x ± error` surely rounds to the same value.

    Between two neighbours of the format lies one boundary, the middle `t`; with `|x − t| > error`, and an error below a quarter
    of the narrower neighbouring gap, the interval crosses neither `t` nor the next boundary. `x − t` is exact (Sterbenz). Numbers
    near or below the smallest normal one, where gaps stop shrinking, are left to `settle`; so are NaN and infinities.
    """
    cut = working.fraction_bits - form.fraction_bits
    half, above = working.integer(1 << (cut - 1)), working.integer(-(1 << cut))
    x_bits = x.view(working.integer)
    middle = x_bits & above
    middle |= half
    distance = x - middle.view(working.dtype)
    np.abs(distance, out=distance)
    settled: NDArray[np.bool_] = distance > error
    magnitude = np.abs(x, out=distance)
    settled &= magnitude >= working.dtype(2 * form.smallest_normal)
    magnitude *= working.dtype(2.0 ** -(form.fraction_bits + 3))
    settled &= error <= magnitude
    rounded = np.add(x_bits, half, out=middle)
    rounded &= above
    result[...] = bits_of_normal(rounded.view(working.dtype), form)
    return settled
