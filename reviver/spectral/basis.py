"""The spectral basis of a base weight: its leading singular vectors and its singular values, as accurate as a float64 SVD.

The filter's leakage is set by the error of the basis over the gap after σ_k, so that a basis good to float32 is not
good enough, however it is stored afterwards.

Shape suffixes: `D` rows and `E` columns of a weight as it lies on disk, `K` width of a basis (vectors kept a side),
`S` = min(D, E) singular values, `M` and `L` the shorter and the longer side of the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from reviver.errors import NumericsError, UsageError
from reviver.spectral.decomposition import gram_triplets, orthonormalise, plain_triplets
from reviver.spectral.iteration import leading_triplets

Method = Literal["auto", "svd", "gram", "iteration"]

# Up to this shorter side a plain float64 SVD is as fast as anything else (measured by tests/benchmarks/bases.py).
SMALL_SIDE = 192
# From this shorter side on, and for at most one vector in `WIDE`, iterating is faster than all eigenvectors (measured likewise).
LARGE_SIDE = 1536
WIDE = 8
# A gap after σ_k narrower than this share of σ₁ does not divide the directions before it from those after it.
GAP = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralBasis:
    """The leading singular vectors of a base weight and its singular values, all in float64.

    Attributes:
        left_DK: left singular vectors, the columns orthonormal, by falling singular value.
        right_EK: right singular vectors, likewise.
        singular_values: all min(D, E) singular values, falling; or only the leading ones, where `complete` is false.
        frobenius: the Frobenius norm of the weight.
        shape: (D, E).
    """

    left_DK: Tensor
    right_EK: Tensor
    singular_values: Tensor
    frobenius: float
    shape: tuple[int, int]

    @property
    def width(self) -> int:
        """How many vectors a side the basis holds."""
        return self.left_DK.shape[1]

    @property
    def complete(self) -> bool:
        """Whether `singular_values` are all of them."""
        return len(self.singular_values) == min(self.shape)

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self.left_DK.device

    def narrow(self, width: int) -> SpectralBasis:
        """Return the basis with only its first `width` vectors a side."""
        if not 0 <= width <= self.width:
            raise ValueError(f"a basis of width {self.width} cannot be narrowed to {width}")
        return replace(self, left_DK=self.left_DK[:, :width], right_EK=self.right_EK[:, :width])

    def to(self, device: torch.device | str) -> SpectralBasis:
        """Return the basis on another device."""
        return replace(
            self,
            left_DK=self.left_DK.to(device),
            right_EK=self.right_EK.to(device),
            singular_values=self.singular_values.to(device),
        )

    def reorthonormalised(self) -> SpectralBasis:
        """Return the basis in float64 with columns orthonormal to 1e-15, which float32 storage had loosened to 1e-7.

        The span of the first k columns stays the same for every k, and each column stays next to where it was.
        """
        return replace(self, left_DK=orthonormalise(self.left_DK), right_EK=orthonormalise(self.right_EK))

    @staticmethod
    def restored(
        left_DK: Tensor,
        right_EK: Tensor,
        singular_values: Tensor,
        frobenius: float,
        *,
        device: torch.device | str = "cpu",
    ) -> SpectralBasis:
        """Return a basis from vectors that were stored in a narrower type, made orthonormal again in float64."""
        return SpectralBasis(
            left_DK=orthonormalise(left_DK.to(device)),
            right_EK=orthonormalise(right_EK.to(device)),
            singular_values=singular_values.to(device, torch.float64),
            frobenius=frobenius,
            shape=(left_DK.shape[0], right_EK.shape[0]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankChoice:
    """The protected rank of one weight.

    Attributes:
        rank: how many directions a side are protected, k.
        energy: the share of Σσ² that they hold.
        moved_from: the rank that was asked for, where it fell inside a cluster of singular values; else None.
    """

    rank: int
    energy: float
    moved_from: int | None = None


def compute_basis(
    weight_DE: Tensor,
    width: int,
    *,
    device: torch.device | str | None = None,
    method: Method = "auto",
    spectrum: bool = True,
) -> SpectralBasis:
    """Compute the leading `width` singular vectors a side of a weight, and its singular values.

    Args:
        weight_DE: the weight, in any floating type.
        width: vectors wanted a side, 0 ≤ width ≤ min(D, E).
        device: where to compute; the weight's own device by default. The result stays there.
        method: `svd` a plain float64 SVD, `gram` the eigenvectors of the shorter side's Gram matrix, refined,
            `iteration` a filtered subspace iteration, which knows the leading values only; `auto` the fastest.
        spectrum: whether all singular values are wanted; without them `auto` may iterate.

    Returns:
        The basis in float64. In every pair of vectors the largest entry of the left one is positive. Where the
        weight's rank is below `width`, the vectors of zero singular values complete the basis orthonormally.

    Raises:
        NumericsError: the weight holds NaN or infinity.
    """
    if weight_DE.ndim != 2:
        raise ValueError(f"a spectral basis needs a matrix, not a tensor of shape {tuple(weight_DE.shape)}")
    rows, columns = weight_DE.shape
    if not 0 <= width <= min(rows, columns):
        raise ValueError(f"a matrix of shape {rows} × {columns} has no {width} singular vectors")
    weight_DE = weight_DE.detach().to(device if device is not None else weight_DE.device)
    least, most = (float(bound) for bound in weight_DE.aminmax()) if weight_DE.numel() else (0.0, 0.0)
    largest = max(-least, most)
    if not math.isfinite(largest):
        raise NumericsError(
            "the weight holds NaN or infinite values",
            hint="get the checkpoint again; `reviver verify` names what changed",
        )
    # Scaling by a power of two is exact and keeps the squares of a Gram matrix within range.
    scale = math.ldexp(1.0, math.frexp(largest)[1]) if largest else 1.0
    transposed = rows > columns
    matrix_ML = (weight_DE.T if transposed else weight_DE).to(
        torch.float64, copy=True, memory_format=torch.contiguous_format
    )
    matrix_ML /= scale
    short = matrix_ML.shape[0]
    if method == "auto":
        method = "svd" if short <= SMALL_SIDE else "gram"
        if method == "gram" and not spectrum and short >= LARGE_SIDE and width * WIDE <= short:
            method = "iteration"
    triplets = leading_triplets(matrix_ML, width) if method == "iteration" and width else None
    if triplets is None:
        triplets = plain_triplets(matrix_ML, width) if method == "svd" else gram_triplets(matrix_ML, width)
    near_MK, values_S, far_LK = triplets
    # One sign of each pair is free; fixing it makes the stored basis the same for every method and device.
    left_DK, right_EK = (far_LK, near_MK) if transposed else (near_MK, far_LK)
    signs_K = _signs(left_DK)
    return SpectralBasis(
        left_DK=(left_DK * signs_K).contiguous(),
        right_EK=(right_EK * signs_K).contiguous(),
        singular_values=values_S.clamp_min(0.0) * scale,
        frobenius=float(torch.linalg.matrix_norm(matrix_ML)) * scale,
        shape=(rows, columns),
    )


def choose_rank(
    singular_values: Tensor, *, rank: int | None = None, energy: float | None = None, frobenius: float | None = None
) -> RankChoice:
    """Choose the protected rank k of one weight: given directly, or the smallest that holds `energy` of Σσ².

    A k that would split a cluster (σ_k − σ_{k+1} < 1e-5·σ₁) protects directions that rounding picked. It moves to the
    end of the cluster; where the cluster runs to the last singular value, so that nothing would be left to edit, to
    its beginning.

    Args:
        singular_values: all of them, falling, [min(D, E)]; with `frobenius`, the leading ones are enough if k is
            among them.
        rank: k, 0 < rank < min(D, E).
        energy: τ, 0 < energy < 1.
        frobenius: the weight's Frobenius norm, where `singular_values` are only the leading ones.

    Raises:
        UsageError: both or neither are given, one is out of range, or τ asks for every direction.
        NumericsError: the singular values have no gap at all, so that no subspace is dominant.
    """
    if (rank is None) == (energy is None):
        raise UsageError(
            "give either a protected rank or an energy, and not both",
            hint="use `--rank K` or `--energy T`",
        )
    values = singular_values.detach().to("cpu", torch.float64)
    count = len(values)
    cumulative = torch.cumsum(values.square(), 0)
    total = float(cumulative[-1]) if frobenius is None and count else (frobenius or 0.0) ** 2
    if energy is not None:
        if not 0 < energy < 1:
            raise UsageError(
                f"energy {energy:g} is not between 0 and 1", hint="use for example `--energy 0.5`", energy=energy
            )
        rank = int(torch.searchsorted(cumulative, energy * total)) + 1
        if rank >= count:
            raise UsageError(
                f"energy {energy:g} would protect all {count} directions, so that nothing could be edited",
                hint="use a smaller `--energy`, or `--rank K`",
                energy=energy,
            )
    if rank is None or not 0 < rank < count:
        raise UsageError(
            f"rank {rank} is not between 1 and {count - 1}, the most that a weight with {count} singular values allows",
            hint=f"use `--rank K` with 0 < K < {count}",
            rank=rank,
        )
    limit = GAP * float(values[0])
    divides = (values[:-1] - values[1:] >= limit) & (values[:-1] > 0)
    after = torch.nonzero(divides[rank - 1 :])
    before = torch.nonzero(divides[: rank - 1])
    if len(after):
        chosen = rank + int(after[0])
    elif len(before):
        chosen = int(before[-1]) + 1
    else:
        raise NumericsError(
            "the singular values of this weight are all alike, so that it has no dominant directions to protect",
            hint="leave this layer out with `--layers`, or use `--filter none`",
        )
    return RankChoice(
        rank=chosen,
        energy=min(1.0, float(cumulative[chosen - 1]) / total),
        moved_from=rank if chosen != rank else None,
    )


def _signs(vectors_DK: Tensor) -> Tensor:
    """Return for each column the sign that makes its largest entry positive."""
    if not vectors_DK.numel():
        return vectors_DK.new_ones(vectors_DK.shape[1])
    largest_K = vectors_DK.gather(0, vectors_DK.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest_K < 0, -1.0, 1.0).to(vectors_DK.dtype)
