"""The leading singular vectors of a large matrix without its whole spectrum: a thick-restarted block Lanczos iteration.

It runs on the Gram matrix of the shorter side. Every new block is made orthogonal to all earlier ones, twice, and the
projected problem is formed from the stored images, so that rounding does not undo orthogonality as it does in the
short recurrence.

Shape suffixes: `M` and `L` shorter and longer side of the matrix, `B` block, `Q` vectors held, `K` vectors wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reviver.spectral.decomposition import Triplets, gram, orthonormalise, rayleigh_ritz

BLOCK = 16
SEED = 2601
# A pair has converged when its residual on W Wᵀ is at most this share of σ₁²; rounding allows no less than about 1e-15.
TOLERANCE = 4e-15
CYCLES = 60
# Below this share of σ₁ squaring would cost too many digits; the caller then takes the whole spectrum.
FLOOR = 0.03


def leading_triplets(matrix_ML: Tensor, width: int) -> Triplets | None:
    """Return the leading singular triplets [M, K], [K], [L, K] of a float64 matrix with M ≤ L.

    Returns None where this method does not reach the accuracy of an SVD: a σ_K below 0.03·σ₁, or no convergence.
    """
    gram_MM = gram(matrix_ML)
    size = gram_MM.shape[0]
    kept = min(width + max(2 * BLOCK, width // 4), size)
    held = min(max(2 * kept, kept + 20 * BLOCK), size)
    basis_MQ = matrix_ML.new_empty((size, 0))
    image_MQ = matrix_ML.new_empty((size, 0))
    generator = torch.Generator(device="cpu").manual_seed(SEED)
    block_MB = _orthonormal_block(_random(matrix_ML, generator, min(BLOCK, size)), basis_MQ, generator)
    for _ in range(CYCLES):
        while basis_MQ.shape[1] < held and block_MB.shape[1]:
            basis_MQ = torch.cat([basis_MQ, block_MB], dim=1)
            image_MB = gram_MM @ block_MB
            image_MQ = torch.cat([image_MQ, image_MB], dim=1)
            room = min(BLOCK, size - basis_MQ.shape[1])
            block_MB = _orthonormal_block(image_MB[:, :room], basis_MQ, generator)
        projected_QQ = basis_MQ.T @ image_MQ
        values_Q, turn_QQ = torch.linalg.eigh((projected_QQ + projected_QQ.T) * 0.5)
        values_Q, turn_QQ = values_Q.flip(0), turn_QQ.flip(1)[:, :kept]
        basis_MQ, image_MQ = basis_MQ @ turn_QQ, image_MQ @ turn_QQ
        top = float(values_Q[0])
        if not float(values_Q[width - 1]) > FLOOR**2 * top:
            return None
        residual_MK = image_MQ[:, :width] - basis_MQ[:, :width] * values_Q[:width]
        if float(torch.linalg.vector_norm(residual_MK, dim=0).max()) <= TOLERANCE * top:
            near_MK, leading_K, far_LK = rayleigh_ritz(matrix_ML, orthonormalise(basis_MQ))
            return near_MK[:, :width], leading_K[:width], far_LK[:, :width]
    return None


def _orthonormal_block(vectors_MB: Tensor, basis_MQ: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many orthonormal vectors, orthogonal to the basis; directions that vanish are replaced by random ones."""
    for _ in range(3):
        before_B = torch.linalg.vector_norm(vectors_MB, dim=0)
        vectors_MB = vectors_MB - basis_MQ @ (basis_MQ.T @ vectors_MB)
        vectors_MB, triangle_BB = torch.linalg.qr(vectors_MB)
        lost_B = torch.diagonal(triangle_BB).abs() <= 1e-10 * before_B
        if bool(lost_B.any()):
            fresh_MB = _random(vectors_MB, generator, vectors_MB.shape[1])
            vectors_MB = torch.where(lost_B, fresh_MB / fresh_MB.shape[0] ** 0.5, vectors_MB)
    return vectors_MB


def _random(like: Tensor, generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(like.shape[0], count, generator=generator, dtype=torch.float64).to(like.device)
