"""Norms and forms of a matrix that is given as a product of two thin factors, without ever forming it.

Shape suffixes: `D` rows and `E` columns of the matrix as it lies on disk, `R` rank of the factors, `Q` a reduced rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def factored_norm(left_DR: Tensor, right_RE: Tensor) -> float:
    """Return the Frobenius norm of `left_DR @ right_RE`.

    By QR of both factors, so that components which nearly cancel are still measured to float64 accuracy of their
    size; a sum over Gram matrices would lose half of the digits there.
    """
    if not left_DR.shape[1]:
        return 0.0
    return float(torch.linalg.matrix_norm(triangle(left_DR) @ triangle(right_RE.T).T))


def triangle(matrix_DR: Tensor) -> Tensor:
    """Return the triangular factor of a QR in float64: the same inner products of columns in at most R rows."""
    result: Tensor = torch.linalg.qr(matrix_DR.to(torch.float64), mode="r").R
    return result


def factored_inner(change_DE: Tensor, left_DR: Tensor, right_RE: Tensor) -> float:
    """Return the sum of the entries of `change_DE` times those of `left_DR @ right_RE`, in float64."""
    left_DR, right_RE = left_DR.to(torch.float64), right_RE.to(torch.float64)
    return float(((change_DE.to(torch.float64) @ right_RE.T) * left_DR).sum())


def balance(left_DR: Tensor, right_RE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same product with both factors of each component of like norm, by exact powers of two.

    A component whose one factor is huge and the other tiny would overflow or underflow in float32 storage.
    """
    left_R, right_R = torch.linalg.vector_norm(left_DR, dim=0), torch.linalg.vector_norm(right_RE, dim=1)
    usable_R = (left_R > 0) & (right_R > 0)
    ratio_R = torch.where(usable_R, right_R / torch.where(usable_R, left_R, 1.0), 1.0)
    exponent_R = torch.round(torch.log2(ratio_R) / 2)
    return torch.ldexp(left_DR, exponent_R), torch.ldexp(right_RE, -exponent_R[:, None])


def compact(left_DR: Tensor, right_RE: Tensor, *, tolerance: float = 1e-14) -> tuple[Tensor, Tensor]:
    """Return the product in its fewest components, orthogonal ones by falling size, each with both factors of equal norm.

    Components are then no longer those of single facts, but none of them cancels another.

    Args:
        left_DR: left factor.
        right_RE: right factor.
        tolerance: components below this share of the largest are rounding noise and are dropped.
    """
    left_basis_DQ, left_triangle = torch.linalg.qr(left_DR.to(torch.float64))
    right_basis_EQ, right_triangle = torch.linalg.qr(right_RE.to(torch.float64).T)
    outer, values, inner = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
    kept = int((values > tolerance * values[0]).sum()) if len(values) else 0
    roots = values[:kept].sqrt()
    return left_basis_DQ @ (outer[:, :kept] * roots), (roots[:, None] * inner[:kept]) @ right_basis_EQ.T


def finite(*tensors: Tensor) -> bool:
    """Return whether no entry of any of the tensors is NaN or infinite."""
    return all(math.isfinite(float(tensor.abs().sum(dtype=torch.float64))) for tensor in tensors if tensor.numel())
