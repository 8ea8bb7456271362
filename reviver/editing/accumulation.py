"""The sum of many rounds' updates of one tensor: factors side by side while they are the smaller form, a whole matrix after that.

Shape suffixes: `D` rows and `E` columns of the tensor as it lies on disk, `R` and `Q` components, `K` protected directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reviver.checkpoint.delta import Delta, DenseDelta, LowRankDelta
from reviver.spectral.basis import SpectralBasis
from reviver.spectral.factors import factored_norm


class Accumulation:
    """What all rounds together add to one tensor.

    Updates are added as the float32 values that a patch stores, so that the sum here is the sum that every rebuild computes.

    Args:
        shape: (D, E).
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []
        self._dense_DE: Tensor | None = None
        self._square, self._counted = 0.0, 0

    @property
    def rank(self) -> int | None:
        """The number of components; None for a whole matrix."""
        return None if self._dense_DE is not None else sum(left.shape[1] for left in self._left)

    def add_factors(self, left_DR: Tensor, right_RE: Tensor) -> None:
        """Add a product of two factors (kept in float32)."""
        if self._dense_DE is not None:
            self._dense_DE += left_DR.cpu().double() @ right_RE.cpu().double()
            return
        self._left.append(left_DR.to("cpu", torch.float32))
        self._right.append(right_RE.to("cpu", torch.float32))
        rows, columns = self.shape
        if (self.rank or 0) * (rows + columns) > rows * columns:
            self._to_dense()

    def add_dense(self, values_DE: Tensor) -> None:
        """Add a whole matrix."""
        self._to_dense()
        assert self._dense_DE is not None
        self._dense_DE += values_DE.to("cpu", torch.float64)

    def _to_dense(self) -> None:
        if self._dense_DE is None:
            self._dense_DE = torch.zeros(self.shape, dtype=torch.float64)
            for left, right in zip(self._left, self._right, strict=True):
                self._dense_DE += left.double() @ right.double()
            self._left, self._right = [], []

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return the factors side by side, float32, or None for a whole matrix."""
        if self._dense_DE is not None:
            return None
        rows, columns = self.shape
        left = torch.cat(self._left, dim=1) if self._left else torch.zeros(rows, 0)
        right = torch.cat(self._right, dim=0) if self._right else torch.zeros(0, columns)
        return left, right

    def dense(self) -> Tensor:
        """Return the sum as one matrix `[D, E]`, float64."""
        factors = self.factors()
        if factors is not None:
            return factors[0].double() @ factors[1].double()
        assert self._dense_DE is not None
        return self._dense_DE

    def norm(self) -> float:
        """Return the Frobenius norm."""
        factors = self.factors()
        return factored_norm(*factors) if factors is not None else float(torch.linalg.matrix_norm(self.dense()))

    def running_norm(self) -> float:
        """Return the Frobenius norm to about eight digits, for far less work than `norm` where it is asked after every round."""
        if self._dense_DE is not None:
            return self.norm()
        parts = list(zip(self._left, self._right, strict=True))
        for number in range(self._counted, len(parts)):
            # ‖S + Δ‖² = ‖S‖² + 2⟨S, Δ⟩ + ‖Δ‖²: products with what is there instead of a decomposition of it.
            earlier = sum(_inner(*part, *parts[number]) for part in parts[:number])
            self._square += 2 * earlier + _inner(*parts[number], *parts[number])
        self._counted = len(parts)
        return math.sqrt(max(self._square, 0.0))

    def begin_with(self, dense_DE: Tensor) -> None:
        """Take a sum that an earlier run left, float64 `[D, E]`, in place of what is here."""
        self._left, self._right = [], []
        self._dense_DE = dense_DE

    def delta(self) -> Delta:
        """Return the sum as a patch stores it: float32 factors, or float32 values."""
        factors = self.factors()
        if factors is None:
            return DenseDelta(self.dense().float().contiguous().numpy())
        return LowRankDelta(factors[0].contiguous().numpy(), factors[1].contiguous().numpy())


class Unfiltered:
    """The norm of what an editor asked for in all rounds, before the filter.

    The filter takes U(UᵀΔ) + (1 − UUᵀ)(ΔV)Vᵀ of an update Δ: two parts that are orthogonal to each other and to what it leaves.
    So beside the sum of what it left, UᵀΔ and (1 − UUᵀ)ΔV of the sum of all updates are enough, which are thin and do not grow.

    Args:
        total: the sum of what the filter left.
        basis: spectral basis of the base tensor; None without a filter.
        rank: protected rank; None without a filter.
    """

    def __init__(self, total: Accumulation, basis: SpectralBasis | None, rank: int | None) -> None:
        self._total = total
        self._vectors: tuple[Tensor, Tensor] | None = None
        self._taken: tuple[Tensor, Tensor] | None = None
        if basis is not None and rank is not None:
            self._vectors = basis.left_DK[:, :rank].double(), basis.right_EK[:, :rank].double()
            rows, columns = total.shape
            self._taken = torch.zeros(rank, columns, dtype=torch.float64), torch.zeros(rows, rank, dtype=torch.float64)

    def add_factors(self, left_DR: Tensor, right_RE: Tensor) -> None:
        """Count an update as the editor asked for it, given as a product of two factors."""
        if self._vectors is not None:
            left_DK, right_EK = self._vectors
            left_DR, right_RE = left_DR.double(), right_RE.double()
            self._add((left_DK.T @ left_DR) @ right_RE, left_DR @ (right_RE @ right_EK))

    def add_dense(self, values_DE: Tensor) -> None:
        """Count an update as the editor asked for it, given as a whole matrix."""
        if self._vectors is not None:
            left_DK, right_EK = self._vectors
            self._add(left_DK.T @ values_DE.double(), values_DE.double() @ right_EK)

    def _add(self, rows_KE: Tensor, columns_DK: Tensor) -> None:
        assert self._vectors is not None and self._taken is not None
        left_DK = self._vectors[0]
        columns_DK = columns_DK - left_DK @ (left_DK.T @ columns_DK)
        for taken, added in zip(self._taken, (rows_KE, columns_DK), strict=True):
            taken += added.cpu()

    def norm(self) -> float:
        """Return the Frobenius norm."""
        taken = self._taken or ()
        return math.hypot(self._total.norm(), *(float(torch.linalg.matrix_norm(part)) for part in taken))

    def tensors(self) -> dict[str, Tensor]:
        """Return what has to be saved, beside the sum itself; nothing without a filter."""
        return {} if self._taken is None else {"taken_rows": self._taken[0], "taken_columns": self._taken[1]}

    def begin_with(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` of an earlier run returned in place of what is here."""
        if self._taken is not None:
            self._taken = tensors["taken_rows"], tensors["taken_columns"]


def _inner(left_DR: Tensor, right_RE: Tensor, left_DQ: Tensor, right_QE: Tensor) -> float:
    """Return the sum of the products of the entries of two factored matrices, in float64."""
    outer_RQ = left_DR.double().T @ left_DQ.double()
    return float((outer_RQ * (right_RE.double() @ right_QE.double().T)).sum())
