"""What one patch adds to one tensor, in the orientation in which the tensor lies on disk.

Axes: `D0`, `D1` the two lengths of the tensor on disk; `R` the rank of the factors. Values are float32, as in a patch
file, and may be memory-mapped: nothing here holds a `D0 × D1` product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


def _check(name: str, values: NDArray[Any]) -> None:
    if values.ndim != 2 or values.dtype != np.float32:
        raise ValueError(f"{name} must be a float32 matrix, not {values.dtype} of shape {values.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class LowRankDelta:
    """The product `left @ right`: `left` is float32 `[D0, R]`, `right` float32 `[R, D1]`."""

    left: Float32Array
    right: Float32Array

    def __post_init__(self) -> None:
        _check("left", self.left)
        _check("right", self.right)
        if self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"the factors do not fit: {self.left.shape} and {self.right.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """`(D0, D1)`."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """`R`, the number of components (the matrix itself may have a smaller rank)."""
        return int(self.left.shape[1])

    def rows(self, first: int, last: int) -> LowRankDelta:
        """Return the delta of the rows `first` to `last` (exclusive), without copying."""
        return LowRankDelta(self.left[first:last], self.right)

    def product(self) -> Float64Array:
        """Return the delta as float64 `[D0, D1]`; take a few `rows` at a time where the tensor is large."""
        product: Float64Array = np.matmul(self.left.astype(np.float64), self.right.astype(np.float64))
        return product

    def frobenius_norm(self) -> float:
        """Return `‖left @ right‖_F`, computed in float64 from the factors: with `left = QT`, it is `‖T @ right‖_F`."""
        if 0 in (*self.shape, self.rank):
            return 0.0
        triangle = np.linalg.qr(self.left.astype(np.float64), mode="r")
        return float(np.linalg.norm(triangle @ self.right.astype(np.float64)))

    def is_finite(self) -> bool:
        """Tell whether every factor is a number and not infinite."""
        return bool(np.isfinite(self.left).all() and np.isfinite(self.right).all())


@dataclass(frozen=True, slots=True, eq=False)
class DenseDelta:
    """A delta that is not kept as factors: `values` is float32 `[D0, D1]`."""

    values: Float32Array

    def __post_init__(self) -> None:
        _check("values", self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """`(D0, D1)`."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def rank(self) -> int:
        """The largest rank that a matrix of this shape can have."""
        return min(self.shape)

    def rows(self, first: int, last: int) -> DenseDelta:
        """Return the delta of the rows `first` to `last` (exclusive), without copying."""
        return DenseDelta(self.values[first:last])

    def product(self) -> Float64Array:
        """Return the delta as float64 `[D0, D1]`."""
        return self.values.astype(np.float64)

    def frobenius_norm(self) -> float:
        """Return `‖values‖_F`, summed in float64 a few rows at a time."""
        step = max(1, 4_000_000 // max(1, self.values.shape[1]))
        parts = (self.values[first : first + step].astype(np.float64) for first in range(0, self.values.shape[0], step))
        return float(np.sqrt(sum(float(np.vdot(part, part)) for part in parts)))

    def is_finite(self) -> bool:
        """Tell whether every value is a number and not infinite."""
        return bool(np.isfinite(self.values).all())


Delta = LowRankDelta | DenseDelta
