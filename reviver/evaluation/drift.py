"""How far each edited tensor of a version has drifted from the base's, at a k that no filter's setting changes.

Legend: D, E the axes of a tensor as it lies on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reviver.editing.diagnostics import SIMILARITY_RANK
from reviver.spectral.basis import SpectralBasis, compute_basis
from reviver.spectral.drift import norm_growth, singular_vector_similarity, subspace_similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDrift:
    """The drift of one tensor.

    Attributes:
        name: on disk.
        rank: k, how many directions a side are compared.
        subspace_left, subspace_right: overlap of the leading subspaces, ‖U_kᵀÛ_k‖_F²/k: 1 where they agree.
        vectors_left, vectors_right: |u_iᵀû_i| of the first k directions.
        norm_growth: ‖W‖_F over the base's.
    """

    name: str
    rank: int
    subspace_left: float
    subspace_right: float
    vectors_left: tuple[float, ...]
    vectors_right: tuple[float, ...]
    norm_growth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftScores:
    """The drift of a version.

    Attributes:
        subspace_similarity: the mean overlap of the leading subspaces over both sides of all tensors. Where edits have
            become the largest directions it falls to 0 although the base's own are kept: read it beside `norm_growth`.
        vector_similarity: the mean of |u_iᵀû_i|, likewise.
        norm_growth: the largest growth of a tensor's norm.
        tensors: each of them.
    """

    subspace_similarity: float
    vector_similarity: float
    norm_growth: float
    tensors: tuple[TensorDrift, ...]


def drift_basis(weight_DE: Tensor) -> SpectralBasis:
    """Return the leading directions of a tensor at the rank at which drift is measured."""
    return compute_basis(weight_DE, min(SIMILARITY_RANK, *weight_DE.shape), spectrum=False)


def tensor_drift(name: str, base: SpectralBasis, edited: SpectralBasis) -> TensorDrift:
    """Compare a tensor's leading directions, by `drift_basis`, with its base's."""
    rank = base.width
    left, right = subspace_similarity(base, edited, rank)
    vectors_left, vectors_right = singular_vector_similarity(base, edited, rank)
    return TensorDrift(
        name=name,
        rank=rank,
        subspace_left=left,
        subspace_right=right,
        vectors_left=tuple(vectors_left.tolist()),
        vectors_right=tuple(vectors_right.tolist()),
        norm_growth=norm_growth(base, edited),
    )


def drift_scores(tensors: Sequence[TensorDrift]) -> DriftScores:
    """Return the drift of a version from that of its tensors, at least one."""
    overlaps = [side for one in tensors for side in (one.subspace_left, one.subspace_right)]
    vectors = [value for one in tensors for side in (one.vectors_left, one.vectors_right) for value in side]
    return DriftScores(
        subspace_similarity=math.fsum(overlaps) / len(overlaps),
        vector_similarity=math.fsum(vectors) / len(vectors),
        norm_growth=max(one.norm_growth for one in tensors),
        tensors=tuple(tensors),
    )
