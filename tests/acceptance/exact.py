"""A second derivation of what a version's bytes are: rational arithmetic, no floating point on the way."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import torch

MANTISSA = {torch.bfloat16: (7, -126, 127), torch.float16: (10, -14, 15), torch.float32: (23, -126, 127)}


def rounded(value: Fraction, dtype: torch.dtype) -> Fraction:
    """Return the nearest number of a type, ties to even."""
    bits, least, _ = MANTISSA[dtype]
    if value == 0:
        return value
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, least) - bits)
    # `round` of a Fraction goes to the nearest whole number, ties to even.
    return round(value / step) * step


def exact_sum(base: torch.Tensor, factors: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return base plus all products, summed exactly and rounded once to the base's type."""
    rows, columns = base.shape
    base_values = base.double().tolist()
    pairs = [(left.double().tolist(), right.double().tolist()) for left, right in factors]
    result = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            total = Fraction(base_values[row][column])
            for left, right in pairs:
                for component, weight in enumerate(left[row]):
                    total += Fraction(weight) * Fraction(right[component][column])
            result[row, column] = float(rounded(total, base.dtype))
    # Every value is a number of the narrow type already, so that this conversion rounds nothing.
    return torch.from_numpy(result).to(base.dtype)


def header_length(raw: bytes) -> int:
    """Return how many bytes a safetensors file spends before its tensors."""
    return 8 + struct.unpack("<Q", raw[:8])[0]
