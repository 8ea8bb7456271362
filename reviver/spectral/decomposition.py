"""Singular value decompositions in float64 of a matrix with no more rows than columns: the plain one, and the one by a Gram matrix.

A Gram matrix squares the condition: its eigenvectors err by ε·σ₁² / (σ_i² − σ_j²) where those of an SVD err by ε·σ₁ /
(σ_i − σ_j). `refine` takes that factor back, and singular values too small to be seen in the Gram matrix are found in
what the leading vectors leave over.

Shape suffixes: `M` rows and `L` columns of the matrix, M ≤ L; `K` vectors wanted, `B` the other ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Vectors of the shorter side [M, K], singular values (all M, or the leading ones) by falling size, vectors of the
# longer side [L, K].
Triplets = tuple[Tensor, Tensor, Tensor]

# Singular values below this share of σ₁ are not read off the Gram matrix, where they would carry an error of ε·σ₁² / σ.
GRAM_FLOOR = 1e-3


def gram(matrix_ML: Tensor, blocks: int = 8) -> Tensor:
    """Return W Wᵀ, only its lower blocks computed: little more than half the work of the product."""
    size = matrix_ML.shape[0]
    if size < 512:
        return matrix_ML @ matrix_ML.T
    result_MM = matrix_ML.new_empty((size, size))
    step = -(-size // blocks)
    for first in range(0, size, step):
        last = min(first + step, size)
        result_MM[first:last, :last] = matrix_ML[first:last] @ matrix_ML[:last].T
        result_MM[:first, first:last] = result_MM[first:last, :first].T
    return result_MM


def orthonormalise(matrix_DK: Tensor) -> Tensor:
    """Return the float64 orthonormal basis of the columns' span that QR gives, each column turned to its original side."""
    basis_DK, triangle_KK = torch.linalg.qr(matrix_DK.to(torch.float64))
    signs_K = torch.where(torch.diagonal(triangle_KK) < 0, -1.0, 1.0).to(basis_DK.dtype)
    turned_DK: Tensor = basis_DK * signs_K
    return turned_DK


def plain_triplets(matrix_ML: Tensor, width: int) -> Triplets:
    """Return the leading singular vectors and all singular values by one full SVD."""
    near_MM, values_M, far_ML = torch.linalg.svd(matrix_ML, full_matrices=False)
    return near_MM[:, :width], values_M, far_ML[:width].T


def gram_triplets(matrix_ML: Tensor, width: int) -> Triplets:
    """Return the leading singular vectors and all singular values by the eigenvectors of W Wᵀ, refined."""
    eigenvalues, vectors_MM = torch.linalg.eigh(gram(matrix_ML))
    squares_M, vectors_MM = eigenvalues.flip(0).clamp_min(0.0), vectors_MM.flip(1)
    values_M = squares_M.sqrt()
    seen = int((values_M > GRAM_FLOOR * values_M[0]).sum()) if float(values_M[0]) > 0 else 0
    refined = min(width, seen)
    near_MK = refine(matrix_ML, vectors_MM, squares_M, refined)
    if seen < len(values_M):
        # What the large values leave over is small enough for a direct SVD to see the small ones to ε·σ₁.
        rest_MB = orthonormalise(_without(vectors_MM[:, seen:], near_MK))
        rest_BL = rest_MB.T @ matrix_ML
        if width > seen:
            inner_BB, rest_values, _ = torch.linalg.svd(rest_BL, full_matrices=False)
            near_MK = orthonormalise(torch.cat([near_MK, rest_MB @ inner_BB[:, : width - seen]], dim=1))
        else:
            rest_values = torch.linalg.svdvals(rest_BL)
        values_M = torch.cat([values_M[:seen], rest_values])
    near_MK, leading_K, far_LK = rayleigh_ritz(matrix_ML, near_MK)
    values_M = torch.cat([leading_K, values_M[width:]])
    return near_MK, values_M.sort(descending=True).values, far_LK


def refine(matrix_ML: Tensor, vectors_MM: Tensor, squares_M: Tensor, width: int) -> Tensor:
    """Take from the first `width` eigenvectors of a Gram matrix the error that squaring gave them.

    The residual of W Wᵀ u − σ² u is computed through W itself, where its rounding error is ε·σ₁·σ_i instead of ε·σ₁²,
    and the first order of perturbation theory removes its part along every other eigenvector. Within a cluster that
    reaches beyond `width` the vectors are arbitrary and are left alone.

    Args:
        matrix_ML: the matrix W.
        vectors_MM: all eigenvectors of W Wᵀ, by falling eigenvalue.
        squares_M: the eigenvalues.
        width: how many of the leading vectors to refine.

    Returns:
        Orthonormal vectors [M, width].
    """
    leading_MK = vectors_MM[:, :width]
    if not width or width == vectors_MM.shape[1]:
        return orthonormalise(leading_MK)
    image_MK = matrix_ML @ (matrix_ML.T @ leading_MK)
    along_BK = vectors_MM[:, width:].T @ image_MK
    gaps_BK = squares_M[None, :width] - squares_M[width:, None]
    share_BK = along_BK / gaps_BK
    share_BK = torch.where(torch.isfinite(share_BK) & (share_BK.abs() < 1e-2), share_BK, torch.zeros_like(share_BK))
    return orthonormalise(leading_MK + vectors_MM[:, width:] @ share_BK)


def rayleigh_ritz(matrix_ML: Tensor, near_MK: Tensor) -> Triplets:
    """Return the singular triplets of a matrix within the span of `near_MK`: [M, K], [K], [L, K]."""
    if not near_MK.shape[1]:
        empty_LK = matrix_ML.new_empty((matrix_ML.shape[1], 0))
        return near_MK, matrix_ML.new_empty(0), empty_LK
    far_LK, values_K, turn_KK = torch.linalg.svd(matrix_ML.T @ near_MK, full_matrices=False)
    return near_MK @ turn_KK.T, values_K, far_LK


def _without(vectors_MB: Tensor, basis_MK: Tensor) -> Tensor:
    """Return vectors less their part in an orthonormal basis, projected twice against rounding."""
    for _ in range(2):
        vectors_MB = vectors_MB - basis_MK @ (basis_MK.T @ vectors_MB)
    return vectors_MB
