"""Sums of patches as one patch: exact where factors stay small, else fitted to the bytes that the exact sum gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reviver.checkpoint.delta import Delta, DenseDelta
from reviver.checkpoint.fitting import Goal, dense_to
from reviver.checkpoint.floats import decode
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.rounding import rounded_sum
from reviver.history.algebra import Contribution, compose
from reviver.verbs.made import Loss


def one_patch(
    parts: Sequence[Contribution], folder: CheckpointFolder, below: Mapping[str, Sequence[Delta]]
) -> tuple[Contribution, list[Loss]]:
    """Return the sum of contributions as one patch, and the loss of every tensor that became a float32 matrix.

    Args:
        parts: what is added up.
        folder: the base.
        below: the deltas of the version that the patch stands on, by tensor.
    """
    composed = compose(parts)
    deltas = dict(composed.whole.deltas)
    losses = []
    for name in composed.rounded:
        start = deltas[name]
        if isinstance(start, DenseDelta):
            added = [part.deltas[name] for part in parts if name in part.deltas]
            deltas[name], loss = _fit(folder, name, start, below.get(name, ()), added)
            losses.append(loss)
    return Contribution(deltas=deltas, labels=composed.whole.labels), losses


def _fit(
    folder: CheckpointFolder, name: str, start: DenseDelta, before: Sequence[Delta], added: Sequence[Delta]
) -> tuple[DenseDelta, Loss]:
    entry = folder.check_editable(name)
    raw = folder.read_tensor(name)
    target = rounded_sum(raw, entry.dtype, [*before, *added], name=name)
    goal = Goal(base=raw, target=target, dtype=entry.dtype, shape=(entry.shape[0], entry.shape[1]), deltas=before)
    fitted, missed = dense_to(goal, start.values)
    largest = 0.0
    if missed:
        got = decode(goal.rounded(fitted).tobytes(), entry.dtype, goal.shape)
        largest = float(np.abs(got - decode(target, entry.dtype, goal.shape)).max())
    return fitted, Loss(name=name, entries=missed, total=entry.shape[0] * entry.shape[1], largest=largest)
