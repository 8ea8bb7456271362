"""The editors' formulae as their papers write them: numpy, float64, explicit I × I inverses. Independent of the package."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(matrix: Tensor) -> Matrix:
    return matrix.detach().double().numpy()


def spectrum_moment(size: int, condition: float, seed: int = 0) -> Tensor:
    """Return a second moment with eigenvalues spread evenly in logarithm over a condition."""
    turn = torch.linalg.qr(drawn(seed, size, size)).Q
    values = torch.logspace(0, -np.log10(condition), size, dtype=torch.float64)
    return turn * values @ turn.T


def orthonormal(seed: int, rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(drawn(seed, rows, columns)).Q


def memit(keys: Tensor, residual: Tensor, cost: Matrix) -> Matrix:
    """R Kᵀ (A + K Kᵀ)⁻¹."""
    k, r = exact(keys), exact(residual)
    return r @ k.T @ np.linalg.inv(cost + k @ k.T)


def constrained(keys: Tensor, residual: Tensor, cost: Matrix, output: Tensor, inputs: Tensor) -> Matrix:
    """The least ‖X K − R‖² + tr(X A Xᵀ) over X = (1 − U Uᵀ) Y Nᵀ, with N a basis of all inputs orthogonal to V."""
    k, r, v, u = exact(keys), exact(residual), exact(inputs), exact(output)
    null = np.linalg.svd(v.T)[2][v.shape[1] :].T
    reduced = r @ (null.T @ k).T @ np.linalg.inv(null.T @ cost @ null + null.T @ k @ k.T @ null)
    return (np.eye(len(u)) - u @ u.T) @ reduced @ null.T


def alphaedit(keys: Tensor, residual: Tensor, projector: Matrix, l2: float, earlier: Tensor) -> Matrix:
    """([P(K Kᵀ + K_p K_pᵀ) + L2·1]⁻¹ P K Rᵀ)ᵀ."""
    k, r, p = exact(keys), exact(residual), exact(earlier)
    return np.linalg.solve(projector @ (k @ k.T + p @ p.T) + l2 * np.eye(len(k)), projector @ k @ r.T).T


def relative(ours: Tensor, theirs: Matrix) -> float:
    return float(np.linalg.norm(exact(ours) - theirs) / np.linalg.norm(theirs))
