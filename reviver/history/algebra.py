"""The algebra of patches: taken back, put together, and taken apart by what each component of the factors belongs to.

A version's bytes are the exact real sum of the base and of every product in its chain, so that whatever is done here to the
factors of a patch, by signs and by leaving components out, is exact in the bytes: a patch and its negation cancel wholly.

Axes: `D0`, `D1` the lengths of a tensor on disk, `R` the rank of a delta.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reviver.checkpoint.delta import Delta, DenseDelta, Float32Array, Float64Array, LowRankDelta

_BLOCK_VALUES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Label:
    """Whose a component is.

    Attributes:
        key: what the fact is about: its subject and prompt.
        sign: +1 where the component says the fact, −1 where it takes it back.
        own: the patch brings the fact itself; else it is one of a version below, which is taken back or brought back.
    """

    key: tuple[str, str]
    sign: int = 1
    own: bool = True

    def negated(self) -> Label:
        """Return the label of the negated component, which takes back what this one did."""
        return Label(self.key, -self.sign, own=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one patch, or several, add to a model.

    Attributes:
        deltas: by tensor.
        labels: of each component, where every tensor is in factors whose components belong to the same facts in the same
            order; None for a component that belongs to no fact. None where facts are not apart.
    """

    deltas: Mapping[str, Delta]
    labels: tuple[Label | None, ...] | None

    def negated(self) -> Contribution:
        """Return what takes this back, exactly."""
        labels = None if self.labels is None else tuple(label and label.negated() for label in self.labels)
        return Contribution(deltas={name: negated(delta) for name, delta in self.deltas.items()}, labels=labels)

    def chosen(self, wanted: Callable[[Label | None], bool]) -> Contribution:
        """Return only the components whose label is wanted, exactly.

        Raises:
            ValueError: facts are not apart here; ask `labels` first.
        """
        if self.labels is None:
            raise ValueError("the facts of this patch are not apart")
        kept = [index for index, label in enumerate(self.labels) if wanted(label)]
        return Contribution(
            deltas={name: _components(delta, kept) for name, delta in self.deltas.items()} if kept else {},
            labels=tuple(self.labels[index] for index in kept),
        )

    def holds(self, key: tuple[str, str]) -> bool:
        """Tell whether components are known that bring the fact about `key` as the patch's own."""
        return self.labels is not None and Label(key) in self.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """Several contributions as one patch.

    Attributes:
        whole: their sum; tensors to which it adds nothing are left out.
        rounded: names of the tensors whose sum had to be rounded to a float32 matrix.
    """

    whole: Contribution
    rounded: tuple[str, ...]


def compose(parts: Sequence[Contribution], *, bounded: bool = True) -> Composition:
    """Return the sum of several contributions as one patch.

    Factors are put side by side, and components that cancel one another exactly are left out, in all tensors at once
    where facts are apart. Where factors would take more room than the tensor, their sum becomes a float32 matrix.

    Args:
        parts: what is added up.
        bounded: without, facts that are apart stay so, however much room that takes.
    """
    parts = [part for part in parts if part.deltas]
    if not parts:
        return Composition(whole=Contribution(deltas={}, labels=()), rounded=())
    joined = _side_by_side(parts)
    if joined is not None and not (bounded and any(map(_outgrown, joined.deltas.values()))):
        return Composition(whole=joined, rounded=())
    deltas: dict[str, Delta] = {}
    rounded = []
    for name in sorted({name for part in parts for name in part.deltas}):
        total, exact = add_up([part.deltas[name] for part in parts if name in part.deltas])
        if total is not None:
            deltas[name] = total
            if not exact:
                rounded.append(name)
    return Composition(whole=Contribution(deltas=deltas, labels=None if deltas else ()), rounded=tuple(rounded))


def _side_by_side(parts: Sequence[Contribution]) -> Contribution | None:
    """Return the sum with its labels; None where facts are not apart."""
    names = parts[0].deltas.keys()
    labels: list[Label | None] = []
    for part in parts:
        if part.labels is None or part.deltas.keys() != names:
            return None
        labels += part.labels
    factors: dict[str, LowRankDelta] = {}
    for name in names:
        pieces = [delta for part in parts if isinstance(delta := part.deltas[name], LowRankDelta)]
        if len(pieces) < len(parts):
            return None
        factors[name] = _concatenated(pieces)
    kept = _remaining(list(factors.values()), labels)
    return Contribution(
        deltas={name: _components(delta, kept) for name, delta in factors.items()} if kept else {},
        labels=tuple(labels[index] for index in kept),
    )


def add_up(deltas: Sequence[Delta]) -> tuple[Delta | None, bool]:
    """Return the sum of several deltas of one tensor, and whether it is exact; None where they cancel wholly."""
    if len(deltas) == 1:
        return deltas[0], True
    dense = _without_opposites([delta for delta in deltas if isinstance(delta, DenseDelta)])
    low_rank = [delta for delta in deltas if isinstance(delta, LowRankDelta)]
    factors: LowRankDelta | None = None
    if low_rank:
        side_by_side = _concatenated(low_rank)
        kept = _remaining([side_by_side], [None] * side_by_side.rank)
        factors = _components(side_by_side, kept) if kept else None
    if factors is None and len(dense) < 2:
        return (dense[0] if dense else None), True
    if factors is not None and not dense and not _outgrown(factors):
        return factors, True
    terms: list[Delta] = [*dense, *([factors] if factors is not None else [])]
    total, exact = _dense_sum(terms)
    return (DenseDelta(total) if total.any() else None), exact


def negated(delta: Delta) -> Delta:
    """Return −Δ, exactly."""
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(-delta.left, delta.right)
    return DenseDelta(-delta.values)


def key_similarity(one: Delta, other: Delta, *, transposed: bool) -> Float64Array | None:
    """Return the cosines of the principal angles between the keys of two deltas, falling; None where one is dense.

    The input side of the factors spans what the facts' keys become in the solve. Where two spans meet at small angles, each
    delta changes what the other's facts read.

    Args:
        transposed: whether the tensor is stored input first.

    Returns:
        As many cosines as the smaller span has directions, from 0 (no overlap) to 1.
    """
    if not isinstance(one, LowRankDelta) or not isinstance(other, LowRankDelta):
        return None
    spans = [_span(delta.left if transposed else delta.right.T) for delta in (one, other)]
    cosines: Float64Array = np.minimum(np.linalg.svd(spans[0].T @ spans[1], compute_uv=False), 1.0, dtype=np.float64)
    return cosines


def _span(columns: Float32Array) -> Float64Array:
    """Return an orthonormal basis of the columns' span; directions that are rounding noise of the others are left out."""
    outer, values, _ = np.linalg.svd(columns.astype(np.float64), full_matrices=False)
    return outer[:, values > 1e-7 * values[:1]]


def _components(delta: Delta, kept: Sequence[int]) -> LowRankDelta:
    if not isinstance(delta, LowRankDelta):
        raise ValueError("a dense delta has no components")
    if list(kept) == list(range(delta.rank)):
        return delta
    return LowRankDelta(np.ascontiguousarray(delta.left[:, kept]), np.ascontiguousarray(delta.right[kept]))


def _concatenated(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    if len(deltas) == 1:
        return deltas[0]
    return LowRankDelta(
        np.concatenate([delta.left for delta in deltas], axis=1),
        np.concatenate([delta.right for delta in deltas], axis=0),
    )


def _outgrown(delta: Delta) -> bool:
    """Tell whether a matrix takes less room than its factors."""
    return isinstance(delta, LowRankDelta) and delta.rank * sum(delta.shape) > delta.shape[0] * delta.shape[1]


def _remaining(factors: Sequence[LowRankDelta], labels: Sequence[Label | None]) -> list[int]:
    """Return the components that are left when those that cancel each other in every one of the tensors are taken out."""
    alike: dict[bytes, dict[int, list[int]]] = {}
    for index in range(factors[0].rank):
        sign, content = _canonical(factors, index)
        if sign:
            alike.setdefault(content, {1: [], -1: []})[sign].append(index)
    kept: list[int] = []
    for both in alike.values():
        more, fewer = sorted(both.values(), key=len, reverse=True)
        # Of equal components, one that a version brought goes before one that another version brought back.
        more.sort(key=lambda index: (label := labels[index]) is None or not label.own)
        kept += more[: len(more) - len(fewer)]
    return sorted(kept)


def _canonical(factors: Sequence[LowRankDelta], index: int) -> tuple[int, bytes]:
    """Return the sign of a component and a hash of it that is the same for its negation; a sign of 0 for a zero one."""
    digest = hashlib.sha256()
    whole = 0
    for delta in factors:
        left, left_sign = _positive(delta.left[:, index])
        right, right_sign = _positive(delta.right[index])
        sign = left_sign * right_sign
        whole = whole or sign
        # Signs that differ between the tensors belong to the content: only all of them turned together are its negation.
        digest.update(bytes([1 + sign * whole]))
        if sign:
            digest.update(left.tobytes())
            digest.update(right.tobytes())
    return whole, digest.digest()


def _positive(vector: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Return a vector times the sign of its first entry that is not zero, and that sign; zeros of either sign are +0."""
    places = np.flatnonzero(vector)
    if not places.size:
        return vector, 0
    sign = 1 if vector[places[0]] > 0 else -1
    return vector * np.float32(sign) + np.float32(0), sign


def _without_opposites(deltas: Sequence[DenseDelta]) -> list[DenseDelta]:
    kept: list[DenseDelta] = []
    for delta in deltas:
        for place, other in enumerate(kept):
            if np.array_equal(delta.values, -other.values):
                del kept[place]
                break
        else:
            if delta.values.any():
                kept.append(delta)
    return kept


def _dense_sum(deltas: Sequence[Delta]) -> tuple[Float32Array, bool]:
    """Return the float64 sum rounded to float32, and whether nothing was lost by that."""
    rows, columns = deltas[0].shape
    total = np.empty((rows, columns), np.float32)
    step = max(1, _BLOCK_VALUES // columns)
    for first in range(0, rows, step):
        block = np.zeros((min(step, rows - first), columns))
        for delta in deltas:
            block += delta.rows(first, first + step).product()
        with np.errstate(over="ignore"):  # An infinity is refused where the patch is written.
            total[first : first + step] = block
    # Whether the float64 sum itself was exact is not looked at, so that only a single delta counts as exact.
    return total, len(deltas) == 1 and isinstance(deltas[0], DenseDelta)
