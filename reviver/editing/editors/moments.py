"""The second moment of a layer's keys, weighed and made invertible: what a change of the weight costs ordinary text.

C = E[k kᵀ] over ordinary text, λ its weight. The solves go through A = λ(C + ρ·1) with a small ridge ρ = ε·tr(C)/I: C
is singular where neurons never fire, and its float32 storage alone can make it slightly indefinite. All in float64:
at condition 1e6 a float32 Cholesky errs by 9e-4.

Shape suffixes: `I` input features of the edited weight, `N` right-hand sides, `K` orthonormal directions.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from reviver.editing.devices import free_memory
from reviver.editing.editors.kept import Kept
from reviver.errors import NumericsError
from reviver.spectral.factors import finite

RIDGE = 1e-9
# An eigendecomposition takes this many times the matrix in float64: itself, the vectors, and twice that to work with.
EIGEN_COPIES = 4
# The ridge may grow tenfold this many times before the matrix is called damaged.
RIDGE_STEPS = 6


class NullSpaces(Protocol):
    """Keeps the null space of one second moment from run to run."""

    def load(self, *, threshold: float | None, share: float | None) -> Tensor | None:
        """Return the directions `[I, K]`, float64, that were saved for this limit; None where there are none."""

    def save(self, directions_IK: Tensor, *, threshold: float | None, share: float | None) -> None:
        """Save directions."""


class SecondMoment:
    """A = λ(C + ρ·1) with its Cholesky factor, which is computed once, when it is first needed.

    Args:
        moment_II: C, symmetric, [I, I], float32 or float64.
        weight: λ.
        ridge: ε, the share of the mean eigenvalue tr(C)/I that is added to all of them.
        factor_II: lower Cholesky factor of C + ρ·1 from an earlier run, with `applied_ridge`.
        applied_ridge: the ε that `factor_II` was computed with.
        null_spaces: keeps the null space from run to run; without, it is computed in each.
        device: where to solve; the CPU by default.
    """

    def __init__(
        self,
        moment_II: Tensor,
        weight: float,
        *,
        ridge: float = RIDGE,
        factor_II: Tensor | None = None,
        applied_ridge: float | None = None,
        null_spaces: NullSpaces | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if moment_II.ndim != 2 or moment_II.shape[0] != moment_II.shape[1]:
            raise ValueError(f"a second moment is a square matrix, not {tuple(moment_II.shape)}")
        if not weight > 0:
            raise ValueError(f"the weight λ of a second moment must be positive, not {weight}")
        if not finite(moment_II):
            raise NumericsError(
                "the second moment holds NaN or infinite values",
                hint="delete `.reviver/statistics` and run `reviver init MODEL` again",
            )
        self.moment_II = moment_II
        self.weight = float(weight)
        self.device = torch.device(device)
        self.applied_ridge = float(applied_ridge if factor_II is not None and applied_ridge is not None else ridge)
        self._factor_II = None if factor_II is None else Kept(factor_II, self.device)
        self._saved = null_spaces
        self._null_spaces: dict[tuple[float | None, float | None], Kept] = {}

    @property
    def size(self) -> int:
        """The number of input features, I."""
        return self.moment_II.shape[0]

    @property
    def mean_eigenvalue(self) -> float:
        """tr(C)/I; 1 for a moment of zeros, which then acts as λε times the identity."""
        mean = float(torch.diagonal(self.moment_II).sum(dtype=torch.float64)) / max(self.size, 1)
        return mean if mean > 0 else 1.0

    def factor(self) -> Tensor:
        """Return the lower Cholesky factor of C + ρ·1, in float64; `applied_ridge` is then the ε that it took."""
        if self._factor_II is None:
            matrix_II = symmetric_(self.moment_II.to(self.device, torch.float64, copy=True))
            factor_II, self.applied_ridge = ridged_cholesky(matrix_II, self.mean_eigenvalue, self.applied_ridge)
            del matrix_II
            self._factor_II = Kept(factor_II, self.device)
            return factor_II
        return self._factor_II.values()

    def matrix(self) -> Tensor:
        """Return A = λ(C + ρ·1) in float64, [I, I]."""
        applied_ridge = self._settled_ridge()
        matrix_II = symmetric_(self.moment_II.to(self.device, torch.float64, copy=True)).mul_(self.weight)
        matrix_II.diagonal().add_(self.weight * applied_ridge * self.mean_eigenvalue)
        return matrix_II

    def selected(self, features: Tensor) -> Tensor:
        """Return A on some input features only, [S, S], without factoring the whole of it."""
        features = features.to(self.moment_II.device)
        matrix_SS = symmetric(self.moment_II[features][:, features].to(self.device, torch.float64)) * self.weight
        matrix_SS.diagonal().add_(self.weight * self.applied_ridge * self.mean_eigenvalue)
        return matrix_SS

    def solve(self, vectors_IN: Tensor) -> Tensor:
        """Return A⁻¹ X in float64."""
        vectors_IN = vectors_IN.to(self.device, torch.float64)
        return torch.cholesky_solve(vectors_IN, self.factor()) / self.weight

    def whiten(self, vectors_IN: Tensor) -> Tensor:
        """Return L⁻¹ X with A = L Lᵀ, so that inner products of the result are those of X under A⁻¹."""
        vectors_IN = vectors_IN.to(self.device, torch.float64)
        return lower_solve(self.factor(), vectors_IN) / math.sqrt(self.weight)

    def unwhiten(self, vectors_IN: Tensor) -> Tensor:
        """Return L⁻ᵀ Y with A = L Lᵀ."""
        return upper_solve(self.factor().T, vectors_IN) / math.sqrt(self.weight)

    def null_space(self, *, threshold: float | None = None, share: float | None = None) -> Kept:
        """Return orthonormal directions that ordinary text hardly uses: the eigenvectors of C below a limit, [I, K], float64.

        Computed once; not even that where an earlier run has saved them. The same limit gives the same object.

        Args:
            threshold: absolute: eigenvalues of C below it (AlphaEdit's presets: 2e-2).
            share: relative: as many of the smallest eigenvalues as together hold at most this share of tr(C).
        """
        known = self._null_spaces.get((threshold, share))
        if known is None:
            directions_IK = None if self._saved is None else self._saved.load(threshold=threshold, share=share)
            if directions_IK is None:
                directions_IK = self._small_directions(threshold, share)
                if self._saved is not None:
                    self._saved.save(directions_IK, threshold=threshold, share=share)
            known = self._null_spaces[threshold, share] = Kept(directions_IK, self.device)
        return known

    def _small_directions(self, threshold: float | None, share: float | None) -> Tensor:
        # In host memory where the device has no room: slow, and once a base.
        size, free = 8 * self.size**2, free_memory(self.device)
        device = self.device if free is None or free > (EIGEN_COPIES + 1) * size else torch.device("cpu")
        matrix_II = symmetric_(self.moment_II.to(device, torch.float64, copy=True))
        eigenvalues, vectors_II = torch.linalg.eigh(matrix_II)
        del matrix_II
        if threshold is not None:
            kept = int((eigenvalues < threshold).sum())
        else:
            cumulative = eigenvalues.clamp_min(0.0).cumsum(0)
            kept = int((cumulative <= (share or 0.0) * cumulative[-1]).sum())
        directions_IK: Tensor = vectors_II[:, :kept].contiguous()
        return directions_IK

    def _settled_ridge(self) -> float:
        """Return the ε that the factor took, factoring first if that is still to be seen."""
        self.factor()
        return self.applied_ridge


def ridged_cholesky(matrix_II: Tensor, mean_eigenvalue: float, ridge: float) -> tuple[Tensor, float]:
    """Return the lower Cholesky factor of a matrix plus ε times its mean eigenvalue, and the ε that was enough.

    Args:
        matrix_II: symmetric, float64; its diagonal is changed.
        mean_eigenvalue: what ε is measured in.
        ridge: the ε to begin with; as long as the matrix is not positive definite, ten times as much is tried.

    Raises:
        NumericsError: no reasonable ridge makes the matrix positive definite.
    """
    added = 0.0
    for step in range(RIDGE_STEPS):
        tried = ridge if step == 0 else max(ridge, RIDGE) * 10**step
        matrix_II.diagonal().add_((tried - added) * mean_eigenvalue)
        added = tried
        factor_II, failed = torch.linalg.cholesky_ex(matrix_II)
        if int(failed) == 0:
            return factor_II, tried
    raise NumericsError(
        "the second moment of this layer is not positive semidefinite",
        hint="raise `tokens` under [moments] in `reviver.toml`, delete `.reviver/statistics` and run `reviver init MODEL` again",
    )


def lower_solve(factor_II: Tensor, vectors_IN: Tensor) -> Tensor:
    """Return L⁻¹ X for a lower triangular L."""
    solved_IN: Tensor = torch.linalg.solve_triangular(factor_II, vectors_IN, upper=False)
    return solved_IN


def upper_solve(factor_II: Tensor, vectors_IN: Tensor) -> Tensor:
    """Return U⁻¹ X for an upper triangular U."""
    solved_IN: Tensor = torch.linalg.solve_triangular(factor_II, vectors_IN, upper=True)
    return solved_IN


def symmetric_(matrix_II: Tensor, tile: int = 1024) -> Tensor:
    """Turn a matrix into its symmetric part, in place, a tile at a time, and return it."""
    size = matrix_II.shape[0]
    for row in range(0, size, tile):
        for column in range(0, row + 1, tile):
            below, above = (
                matrix_II[row : row + tile, column : column + tile],
                matrix_II[column : column + tile, row : row + tile],
            )
            mean = (below + above.T).mul_(0.5)
            below.copy_(mean)
            above.copy_(mean.T)
    return matrix_II


def symmetric(matrix_II: Tensor) -> Tensor:
    """Return the symmetric part of a matrix, a new tensor."""
    return (matrix_II + matrix_II.T).mul_(0.5)
