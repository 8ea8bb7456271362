"""The REVIVE filter: an update loses everything that lies in the dominant subspace of the base weight.

Of an update ΔW expanded in the singular vectors of the base weight, Σ α_ij u_i v_jᵀ, every term with i ≤ k or j ≤ k
is removed: ΔW_safe = (I − U_k U_kᵀ) ΔW (I − V_k V_kᵀ) (REVIVE, arXiv 2601.11042). In factors this costs O((D +
E)·k·R) and keeps the rank.

Shape suffixes: `D` rows and `E` columns of the weight as it lies on disk, `K` width of the basis, `R` rank of the
update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reviver.spectral.basis import SpectralBasis
from reviver.spectral.factors import factored_inner, factored_norm, triangle

# What projecting in float64 leaves of a vector that lies wholly in the protected space.
ROUNDING_NOISE = 1e-14


def filter_factors(left_DR: Tensor, right_RE: Tensor, basis: SpectralBasis, rank: int) -> tuple[Tensor, Tensor]:
    """Filter an update by its factors.

    Each factor is projected twice, since one projection of a vector that lies almost wholly in the protected space
    leaves rounding errors there that are large against the rest. A component that is nothing but such errors becomes
    exactly zero.

    Args:
        left_DR: left factor, in any floating type.
        right_RE: right factor.
        basis: of the base weight; on the factors' device.
        rank: the protected rank k, at most `basis.width`.

    Returns:
        Both factors in float64; rounding them is the caller's.
    """
    left_DR = _outside(left_DR, _vectors(basis.left_DK, rank))
    right_RE = _outside(right_RE.T, _vectors(basis.right_EK, rank)).T
    alive_R = (torch.linalg.vector_norm(left_DR, dim=0) > 0) & (torch.linalg.vector_norm(right_RE, dim=1) > 0)
    return left_DR * alive_R, right_RE * alive_R[:, None]


def filter_dense(delta_DE: Tensor, basis: SpectralBasis, rank: int) -> Tensor:
    """Filter an update that has no factors; as `filter_factors`, in float64, [D, E]."""
    left_DK, right_EK = _vectors(basis.left_DK, rank), _vectors(basis.right_EK, rank)
    delta_DE = delta_DE.to(torch.float64)
    before = float(torch.linalg.matrix_norm(delta_DE))
    for _ in range(2):
        delta_DE = delta_DE - left_DK @ (left_DK.T @ delta_DE)
        delta_DE = delta_DE - (delta_DE @ right_EK) @ right_EK.T
    if float(torch.linalg.matrix_norm(delta_DE)) <= ROUNDING_NOISE * before:
        return torch.zeros_like(delta_DE)
    return delta_DE


def leakage(left_DR: Tensor, right_RE: Tensor, basis: SpectralBasis, rank: int) -> tuple[float, float]:
    """Return ‖U_kᵀ Δ‖ / ‖Δ‖ and ‖Δ V_k‖ / ‖Δ‖ of Δ = left @ right, in Frobenius norms; zeros for a zero update."""
    left_DR, right_RE = left_DR.to(torch.float64), right_RE.to(torch.float64)
    norm = factored_norm(left_DR, right_RE)
    if norm == 0:
        return 0.0, 0.0
    inside_left = (_vectors(basis.left_DK, rank).T @ left_DR) @ triangle(right_RE.T).T
    inside_right = triangle(left_DR) @ (right_RE @ _vectors(basis.right_EK, rank))
    return float(torch.linalg.matrix_norm(inside_left)) / norm, float(torch.linalg.matrix_norm(inside_right)) / norm


def leakage_dense(delta_DE: Tensor, basis: SpectralBasis, rank: int) -> tuple[float, float]:
    """Return ‖U_kᵀ Δ‖ / ‖Δ‖ and ‖Δ V_k‖ / ‖Δ‖ of an update without factors, for example of one that was rounded."""
    delta_DE = delta_DE.to(torch.float64)
    norm = float(torch.linalg.matrix_norm(delta_DE))
    if norm == 0:
        return 0.0, 0.0
    inside_left = _vectors(basis.left_DK, rank).T @ delta_DE
    inside_right = delta_DE @ _vectors(basis.right_EK, rank)
    return float(torch.linalg.matrix_norm(inside_left)) / norm, float(torch.linalg.matrix_norm(inside_right)) / norm


def captured_fraction(change_DE: Tensor, left_DR: Tensor, right_RE: Tensor) -> float:
    """Return ⟨change, Δ⟩ / ‖Δ‖² of Δ = left @ right: the share of an update that rounding to the stored type let through.

    Args:
        change_DE: W_vN − W_parent as stored, exact in the type given.
        left_DR: left factor of the update.
        right_RE: right factor of the update.

    Returns:
        1 for a change that holds the whole update, 0 for one that lost it; 1 for a zero update, of which nothing can
        be lost.
    """
    norm = factored_norm(left_DR, right_RE)
    return factored_inner(change_DE, left_DR, right_RE) / norm**2 if norm else 1.0


def _vectors(basis_DK: Tensor, rank: int) -> Tensor:
    """Return the first `rank` vectors of one side."""
    if not 0 <= rank <= basis_DK.shape[1]:
        raise ValueError(
            f"protected rank {rank} needs a basis at least as wide; this one holds {basis_DK.shape[1]} vectors"
        )
    return basis_DK[:, :rank].to(torch.float64)


def _outside(vectors_DR: Tensor, basis_DK: Tensor) -> Tensor:
    """Return columns less their part in an orthonormal basis; exactly zero where nothing but rounding is left."""
    vectors_DR = vectors_DR.to(torch.float64)
    before_R = torch.linalg.vector_norm(vectors_DR, dim=0)
    for _ in range(2):
        vectors_DR = vectors_DR - basis_DK @ (basis_DK.T @ vectors_DR)
    alive_R: Tensor = torch.linalg.vector_norm(vectors_DR, dim=0) > ROUNDING_NOISE * before_R
    return vectors_DR * alive_R


__all__ = ["captured_fraction", "factored_norm", "filter_dense", "filter_factors", "leakage", "leakage_dense"]
