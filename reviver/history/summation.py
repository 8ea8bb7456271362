"""The sum of several patches' deltas of one tensor: its norm, and how much of it the stored dtype kept.

Axes: `D0`, `D1` the lengths of the tensor on disk, `R` the rank of all factors together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from reviver.checkpoint.delta import Delta, Float64Array, LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.checkpoint.rounding import decode, rounded_sum, rows_per_block
from reviver.errors import CheckpointError
from reviver.history.comparison import SignedDelta
from reviver.progress import Progress

_BLOCK_VALUES = 4 * 1024 * 1024


def norm_of_sum(terms: Sequence[SignedDelta]) -> float:
    """Return ‖Σ ±Δ‖_F in float64; from the factors alone where that is less work than the matrix."""
    if not terms:
        return 0.0
    rows, columns = terms[0].delta.shape
    factors = [(term.sign, term.delta) for term in terms if isinstance(term.delta, LowRankDelta)]
    if len(factors) == len(terms) and sum(delta.rank for _, delta in factors) <= min(rows, columns):
        left = np.concatenate([sign * delta.left for sign, delta in factors], axis=1)
        right = np.concatenate([delta.right for _, delta in factors], axis=0)
        return LowRankDelta(left, right).frobenius_norm()
    return float(np.sqrt(sum(float(np.vdot(block, block)) for _, _, block in _blocks_of_sum(terms))))


def norm_of_tensor(folder: CheckpointFolder, name: str) -> float:
    """Return ‖W‖_F of a tensor of the base, `[D0, D1]`, summed in float64 a few rows at a time."""
    entry = folder.entry(name)
    height, width = entry.shape
    square: float = 0.0
    for first in range(0, height, rows_per_block(width)):
        last = min(first + rows_per_block(width), height)
        block = decode(folder.read_rows(name, first, last), entry.dtype, (last - first, width))
        square += float(np.vdot(block, block))
    return math.sqrt(square)


def captured_fraction(
    pin: BasePin,
    name: str,
    before: Sequence[Delta],
    after: Sequence[Delta],
    terms: Sequence[SignedDelta],
    *,
    progress: Progress,
) -> float | None:
    """Return ⟨W_after − W_before, Δ⟩ / ‖Δ‖² with both versions rounded as stored and Δ the sum of `terms`.

    None where the base cannot be read, or Δ is zero.
    """
    try:
        folder = CheckpointFolder.open(Path(pin.folder))
        entry = folder.check_editable(name)
        product = square = 0.0
        with progress.task(name, total=entry.shape[0], unit="rows") as task:
            for first, last, block in _blocks_of_sum(terms):
                raw = folder.read_rows(name, first, last)
                old = decode(_rounded(raw, entry.dtype, before, first, last), entry.dtype, block.shape)
                new = decode(_rounded(raw, entry.dtype, after, first, last), entry.dtype, block.shape)
                product += float(np.vdot(new - old, block))
                square += float(np.vdot(block, block))
                task.advance(last - first)
    except (CheckpointError, OSError):
        return None
    return product / square if square > 0 else None


def _rounded(raw: bytes, dtype: str, deltas: Sequence[Delta], first: int, last: int) -> bytes:
    return rounded_sum(raw, dtype, [delta.rows(first, last) for delta in deltas]) if deltas else raw


def _blocks_of_sum(terms: Sequence[SignedDelta]) -> Iterator[tuple[int, int, Float64Array]]:
    """Yield first row, last row (exclusive) and the float64 sum of the rows between, a block at a time."""
    rows, columns = terms[0].delta.shape
    step = max(1, _BLOCK_VALUES // columns)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        block = np.zeros((last - first, columns))
        for term in terms:
            block += term.sign * term.delta.rows(first, last).product()
        yield first, last, block
