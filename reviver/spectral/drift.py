"""Drift: how far the spectrum of an edited weight has moved from the base's (REVIVE, arXiv 2601.11042, its diagnostics).

Measured at a k that does not depend on the filter, so that runs with and without it compare. Where edits have become
the largest directions of the edited weight, subspace similarity falls to 0 although the base's own directions may all
be kept: read it beside norm growth.

Shape suffixes: `D` rows, `E` columns, `K` vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reviver.spectral.basis import SpectralBasis


def subspace_similarity(base: SpectralBasis, edited: SpectralBasis, rank: int) -> tuple[float, float]:
    """Return ‖U_kᵀ Û_k‖_F² / k and ‖V_kᵀ V̂_k‖_F² / k: 1 where the leading subspaces agree, 0 where they are orthogonal."""
    return (
        _overlap(base.left_DK, edited.left_DK, rank),
        _overlap(base.right_EK, edited.right_EK, rank),
    )


def singular_vector_similarity(base: SpectralBasis, edited: SpectralBasis, rank: int) -> tuple[Tensor, Tensor]:
    """Return |u_iᵀ û_i| and |v_iᵀ v̂_i| for the first k directions, [k] each."""
    return (
        _leading(base.left_DK, rank).mul(_leading(edited.left_DK, rank)).sum(0).abs(),
        _leading(base.right_EK, rank).mul(_leading(edited.right_EK, rank)).sum(0).abs(),
    )


def norm_growth(base: SpectralBasis, edited: SpectralBasis) -> float:
    """Return ‖edited weight‖_F / ‖base weight‖_F; infinity for a base of zeros."""
    return edited.frobenius / base.frobenius if base.frobenius else float("inf")


def _overlap(base_DK: Tensor, edited_DK: Tensor, rank: int) -> float:
    return float((_leading(base_DK, rank).T @ _leading(edited_DK, rank)).square().sum()) / rank


def _leading(vectors_DK: Tensor, rank: int) -> Tensor:
    if not 0 < rank <= vectors_DK.shape[1]:
        raise ValueError(f"drift at k = {rank} needs at least as many vectors; there are {vectors_DK.shape[1]}")
    return vectors_DK[:, :rank].to(torch.float64)
