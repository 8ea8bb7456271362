"""Entries that a first pass could not decide: how far it may have erred, and the exact sum where nothing less will do.

Axes: `D0`, `D1` the lengths on disk, `R` the rank of one delta, `K` the number of low-rank deltas, `n` the doubtful entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reviver.checkpoint.delta import Delta, DenseDelta, Float64Array, LowRankDelta
from reviver.checkpoint.floats import FloatFormat, round_once, single_from_bits, sum_to_odd
from reviver.errors import NumericsError

# So many values of a factor, or exact terms, are held in float64 at a time: 8 MB.
_VALUES_AT_ONCE = 1_000_000
_UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What bounds `Σ|terms|` of a chain at each entry: `rows_DK @ columns_KE`, and the dense deltas' own magnitudes."""

    rows_DK: Float64Array
    columns_KE: Float64Array
    terms: int
    """How many terms the deltas give each entry."""

    def rows(self, first: int, last: int) -> Bounds:
        """Return the bounds of the rows `first` to `last` (exclusive)."""
        return Bounds(rows_DK=self.rows_DK[first:last], columns_KE=self.columns_KE, terms=self.terms)


def bounds_of(deltas: Sequence[Delta], name: str) -> Bounds:
    """Return the bounds of a chain, by Cauchy and Schwarz: `Σ|left_i·right_i| ≤ ‖row of left‖·‖column of right‖`.

    The components are first balanced by powers of two, which changes no product: one with a large left and a small right side
    would otherwise make the bound of all the others loose. The norms' own rounding is covered by a factor `1 + 2⁻²⁰`.

    Raises:
        NumericsError: a factor is NaN or infinite.
    """
    height, width = deltas[0].shape
    factored = [delta for delta in deltas if isinstance(delta, LowRankDelta)]
    row_squares, column_squares = np.zeros((height, len(factored))), np.zeros((len(factored), width))
    step = max(1, _VALUES_AT_ONCE // max(height, width))
    with np.errstate(all="ignore"):
        for number, delta in enumerate(factored):
            for first in range(0, delta.rank, step):
                left = delta.left[:, first : first + step].astype(np.float64)
                right = delta.right[first : first + step].astype(np.float64)
                left *= left
                right *= right
                # The norms are squared, so a fourth root is the scale of one side, and its square what is applied here.
                scale = np.exp2(np.rint(0.5 * np.log2(right.sum(axis=1) / left.sum(axis=0))))
                scale[~(np.isfinite(scale) & (scale > 0))] = 1
                row_squares[:, number] += left @ scale
                column_squares[number] += (1 / scale) @ right
    if not (np.isfinite(row_squares).all() and np.isfinite(column_squares).all()):
        raise _not_finite(name)
    return Bounds(
        rows_DK=np.sqrt(row_squares) * (1 + 2.0**-20),
        columns_KE=np.sqrt(column_squares) * (1 + 2.0**-20),
        terms=sum(delta.rank if isinstance(delta, LowRankDelta) else 1 for delta in deltas),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubtful:
    """Entries of a block of rows that are still open, each array `[n]`."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    x: Float64Array
    """The sum as computed."""
    error: Float64Array
    """How far `x` may be from the exact sum."""


def settle(
    bits: NDArray[Any],
    doubtful: Doubtful,
    deltas: Sequence[Delta],
    bounds: Bounds,
    form: FloatFormat,
    name: str,
    first_row: int,
) -> NDArray[Any]:
    """Return the stored bits of the doubtful entries: by both ends of the interval, by a closer sum, or by the exact one.

    Args:
        bits: the base's stored bits of the block, `[D0, D1]`.
        doubtful: which entries of the block.
        deltas: the chain's deltas of the block's rows.
        bounds: those of the block's rows.
        form: the stored format.
        name: the tensor, for errors.
        first_row: the number of the block's first row in the tensor.

    Raises:
        NumericsError: a delta is NaN or infinite there, or would change a NaN or an infinity of the base.
    """
    own_bits = bits[doubtful.rows, doubtful.columns]
    with np.errstate(invalid="ignore", over="ignore"):
        base = single_from_bits(own_bits, form).astype(np.float64)
        low, high = round_once(doubtful.x - doubtful.error, form), round_once(doubtful.x + doubtful.error, form)
    untouched = ((bounds.rows_DK[doubtful.rows] == 0) | (bounds.columns_KE[:, doubtful.columns].T == 0)).all(axis=1)
    for delta in deltas:
        if isinstance(delta, DenseDelta):
            untouched &= delta.values[doubtful.rows, doubtful.columns] == 0
    result = np.where(untouched, own_bits, low)
    # A first pass in float32 may overflow on the way to a sum that does not.
    usable = np.isfinite(base) & np.isfinite(doubtful.x) & np.isfinite(doubtful.error)
    remaining = np.flatnonzero(~untouched & ((low != high) | ~usable))
    at_once = max(1, _VALUES_AT_ONCE // bounds.terms)
    for start in range(0, remaining.size, at_once):
        chosen = remaining[start : start + at_once]
        rows, columns = doubtful.rows[chosen], doubtful.columns[chosen]
        terms = _terms(deltas, rows, columns)
        wrong = np.flatnonzero(~np.isfinite(terms).all(axis=1))
        if wrong.size:
            raise _not_finite(name)
        closer, open_ones = _closer(terms, base[chosen], form)
        # Where every term is zero, the sum −0 + 0 would lose the sign of the base.
        idle = ~terms.any(axis=1)
        result[chosen] = np.where(idle, own_bits[chosen], closer)
        open_ones &= ~idle
        for index in np.flatnonzero(open_ones):
            place = f"row {first_row + int(rows[index])}, column {int(columns[index])}"
            result[chosen[index]] = _exactly(
                terms[index].tolist(), own_bits[chosen[index]], base[chosen[index]], form, name, place
            )
    return result


def _closer(terms: Float64Array, base: Float64Array, form: FloatFormat) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Round sums of exact terms `[n, Σ R]` with a bound from the terms themselves, and tell which are still open."""
    with np.errstate(invalid="ignore"):
        x = base + terms.sum(axis=1)
        error = np.abs(base) + np.abs(terms).sum(axis=1)
        error *= (terms.shape[1] + 8) * _UNIT_ROUNDOFF * (1 + 2.0**-10)
        low, high = round_once(x - error, form), round_once(x + error, form)
    return low, (low != high) | ~np.isfinite(base)


def _exactly(
    terms: list[float], own_bits: np.unsignedinteger[Any], base: float, form: FloatFormat, name: str, place: str
) -> Any:
    """Return the stored bits of one entry from the exact sum."""
    if not np.isfinite(base):
        if sum_to_odd(terms) == 0:
            return own_bits
        raise NumericsError(
            f"{name} is {base} in the base at {place}, where the patch changes it",
            hint="the base is damaged there, or overflowed in training: this tensor cannot be edited",
        )
    total = sum_to_odd([float(base), *terms])
    # A sum of zero from a base of zero means a delta of zero, and then −0 stays −0.
    return own_bits if total == 0 and base == 0 else round_once(np.array([total]), form)[0]


def _terms(deltas: Sequence[Delta], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Float64Array:
    """Return every term of the deltas at the given places, each exact: float64 `[n, Σ R]`."""
    parts: list[Float64Array] = []
    for delta in deltas:
        if isinstance(delta, LowRankDelta):
            parts.append(delta.left[rows].astype(np.float64) * delta.right[:, columns].T.astype(np.float64))
        else:
            parts.append(delta.values[rows, columns].astype(np.float64)[:, None])
    return np.concatenate(parts, axis=1)


def _not_finite(name: str) -> NumericsError:
    return NumericsError(
        f"the patch of {name} holds NaN or an infinity", hint="the patch is damaged, or its solve failed"
    )
