"""The delta that turns a version's tensor into given bytes: factors where few rows or columns differ, else a whole matrix.

The rule for a version's bytes runs backwards here: what is returned was rounded as any version is, and compared. A low-rank
update that was merged into a model and rounded with it cannot be had back as factors: the difference that is left has every rank,
and of the factors near the lost ones none rounds to the same bytes in all entries.

Axes: `D0`, `D1` the lengths on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reviver.checkpoint.delta import Delta, DenseDelta, Float32Array, Float64Array, LowRankDelta
from reviver.checkpoint.floats import decode, format_of, single_from_bits
from reviver.checkpoint.rounding import rounded_sum

_NUDGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A tensor as it is and as it shall be.

    Attributes:
        base: the base's bytes, `[D0, D1]`.
        target: the bytes that are wanted.
        dtype: `BF16`, `F16` or `F32`, of both.
        shape: (D0, D1).
        deltas: what stands on the base already.
    """

    base: bytes
    target: bytes
    dtype: str
    shape: tuple[int, int]
    deltas: Sequence[Delta] = ()

    def rounded(self, *more: Delta) -> NDArray[np.generic]:
        """Return the stored bits that come out when `more` is added, `[D0, D1]`."""
        raw = rounded_sum(self.base, self.dtype, [*self.deltas, *more])
        return np.frombuffer(raw, format_of(self.dtype).storage).reshape(self.shape)

    def missed(self, *more: Delta) -> NDArray[np.bool_]:
        """Return which entries are not as they shall be when `more` is added, `[D0, D1]`."""
        wanted = np.frombuffer(self.target, format_of(self.dtype).storage).reshape(self.shape)
        different: NDArray[np.bool_] = self.rounded(*more) != wanted
        return different

    def difference(self) -> Float64Array:
        """Return the wanted values less the real sum of base and deltas, in float64; zero where the bytes are right already."""
        total = decode(self.base, self.dtype, self.shape)
        for delta in self.deltas:
            total = total + delta.product()
        return np.where(self.missed(), decode(self.target, self.dtype, self.shape) - total, 0.0)


def delta_to(goal: Goal) -> tuple[Delta | None, int]:
    """Return the delta that leads to the goal and the number of entries that it misses; None where nothing is to be done.

    An entry that becomes much smaller, or changes its sign in a float32 tensor, may need more digits than one float32 has: then
    the delta is the sum of two float32 matrices, written as factors. What no sum reaches is a −0 where the base has none.
    """
    difference = goal.difference()
    if not difference.any():
        return None, int(goal.missed().sum())
    dense, missed = dense_to(goal, difference.astype(np.float32))
    if missed:
        pieces = [dense.values, (difference - dense.values).astype(np.float32)]
        halves = _line_factors(pieces)
        missed_by_halves = int(goal.missed(halves).sum())
        if missed_by_halves < missed:
            return halves, missed_by_halves
    factors = _line_factors([dense.values])
    if factors.rank * sum(goal.shape) <= goal.shape[0] * goal.shape[1]:
        return factors, missed
    return dense, missed


def dense_to(goal: Goal, start: Float32Array) -> tuple[DenseDelta, int]:
    """Return the float32 matrix near `start` that leads to the goal, and the number of entries that it misses."""
    values = start.copy()
    target = decode(goal.target, goal.dtype, goal.shape)
    missed = goal.missed(DenseDelta(values))
    for _ in range(_NUDGES):
        if not missed.any():
            break
        got = single_from_bits(goal.rounded(DenseDelta(values))[missed], format_of(goal.dtype))
        step = np.sign(target[missed] - got.astype(np.float64))
        # A sum on the wrong side of a rounding boundary, and next to it, needs one step of float32 in the right direction.
        direction = np.copysign(np.inf, step).astype(np.float32)
        values[missed] = np.where(step == 0, values[missed], np.nextafter(values[missed], direction))
        missed = goal.missed(DenseDelta(values))
    return DenseDelta(values), int(missed.sum())


def _line_factors(pieces: Sequence[Float32Array]) -> LowRankDelta:
    """Return the sum of matrices as factors that hold the rows, or the columns, with something in them: no number changes."""
    rows = [np.flatnonzero(piece.any(axis=1)) for piece in pieces]
    columns = [np.flatnonzero(piece.any(axis=0)) for piece in pieces]
    height, width = pieces[0].shape
    if sum(map(len, rows)) <= sum(map(len, columns)):
        units = [np.eye(height, dtype=np.float32)[:, chosen] for chosen in rows]
        values = [piece[chosen] for piece, chosen in zip(pieces, rows, strict=True)]
        return LowRankDelta(np.concatenate(units, axis=1), np.concatenate(values, axis=0))
    units = [np.eye(width, dtype=np.float32)[chosen] for chosen in columns]
    values = [piece[:, chosen] for piece, chosen in zip(pieces, columns, strict=True)]
    return LowRankDelta(np.concatenate(values, axis=1), np.concatenate(units, axis=0))
