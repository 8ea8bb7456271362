"""The leading singular vectors of a large matrix without its whole spectrum: a thick-restarted block Lanczos iteration.

It runs on the Gram matrix of the shorter side. Every new block is made orthogonal to all earlier ones, twice, and the
projected problem is formed from the stored images, so that rounding does not undo orthogonality as it does in the
short recurrence. Vectors are held as rows: a few rows times the Gram matrix take half the time on a CPU that the Gram
matrix times a few columns takes, and a new block is written in place.

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
ROUNDED = 100.0
CYCLES = 60
# Below this share of σ₁ squaring would cost too many digits; the caller then takes the whole spectrum.
FLOOR = 0.03


def leading_triplets(matrix_ML: Tensor, width: int) -> Triplets | None:
    """Return the leading singular triplets [M, K], [K], [L, K] of a float64 matrix with M ≤ L.

    Returns None where this method does not reach the accuracy of an SVD: a σ_K below 0.03·σ₁, or no convergence.
    """
    gram_MM = gram(matrix_ML)
    size = gram_MM.shape[0]
    # Whole blocks, so that the last one of a cycle ends where the room for it ends.
    kept = min(BLOCK * -(-(width + max(2 * BLOCK, width // 4)) // BLOCK), size)
    held = min(kept + BLOCK * max(-(-kept // BLOCK), 20), size)
    basis_QM = matrix_ML.new_empty((held, size))
    image_QM = torch.empty_like(basis_QM)
    generator = torch.Generator(device="cpu").manual_seed(SEED)
    block_BM = _orthonormal_block(
        _random((min(BLOCK, size), size), generator, matrix_ML.device), basis_QM[:0], generator
    )
    filled = 0
    for _ in range(CYCLES):
        while filled < held and len(block_BM):
            fresh = slice(filled, filled + len(block_BM))
            basis_QM[fresh] = block_BM
            image_QM[fresh] = block_BM @ gram_MM
            filled = fresh.stop
            room = min(BLOCK, size - filled)
            block_BM = _orthonormal_block(image_QM[fresh][:room], basis_QM[:filled], generator)
        projected_QQ = basis_QM[:filled] @ image_QM[:filled].T
        values_Q, turn_QQ = torch.linalg.eigh((projected_QQ + projected_QQ.T) * 0.5)
        values_Q, turn_QQ = values_Q.flip(0), turn_QQ.flip(1)[:, :kept]
        for rows_QM in (basis_QM, image_QM):
            rows_QM[:kept] = turn_QQ.T @ rows_QM[:filled]
        filled = kept
        top = float(values_Q[0])
        if not float(values_Q[width - 1]) > FLOOR**2 * top:
            return None
        residual_KM = image_QM[:width] - basis_QM[:width] * values_Q[:width, None]
        residual = float(torch.linalg.vector_norm(residual_KM, dim=1).max())
        if residual <= TOLERANCE * top:
            near_MK, leading_K, far_LK = rayleigh_ritz(matrix_ML, orthonormalise(basis_QM[:kept].T))
            return near_MK[:, :width], leading_K[:width], far_LK[:, :width]
        if residual <= ROUNDED * TOLERANCE * top:
            # What is missing now is what turning the stored images again and again has rounded off.
            basis_QM[:kept] = orthonormalise(basis_QM[:kept].T).T
            image_QM[:kept] = basis_QM[:kept] @ gram_MM
    return None


def _orthonormal_block(vectors_BM: Tensor, basis_QM: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many orthonormal rows, orthogonal to the basis; directions that vanish are replaced by random ones."""
    for _ in range(3):
        before_B = torch.linalg.vector_norm(vectors_BM, dim=1)
        vectors_BM = vectors_BM - (vectors_BM @ basis_QM.T) @ basis_QM
        vectors_MB, triangle_BB = torch.linalg.qr(vectors_BM.T)
        vectors_BM = vectors_MB.T.contiguous()
        lost_B = torch.diagonal(triangle_BB).abs() <= 1e-10 * before_B
        if bool(lost_B.any()):
            fresh_BM = _random(tuple(vectors_BM.shape), generator, vectors_BM.device)
            vectors_BM = torch.where(lost_B[:, None], fresh_BM / fresh_BM.shape[1] ** 0.5, vectors_BM)
    return vectors_BM


def _random(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Return random rows, drawn on the CPU so that they are the same on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
