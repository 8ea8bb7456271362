"""The three stored floating formats, in exact steps to and from float64: numpy has no bfloat16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reviver.checkpoint.delta import Float64Array
from reviver.errors import NumericsError, UnsupportedModelError
from reviver.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """A binary floating format that is narrower than float64."""

    dtype: str
    storage: str
    """The numpy dtype of the stored bits, little-endian."""
    fraction_bits: int
    smallest_normal: float
    quantum: float
    """The distance between neighbours below the smallest normal number."""
    infinity: int
    """The bits of +∞: every exponent bit set."""


FORMATS = {
    "BF16": FloatFormat(
        dtype="BF16", storage="<u2", fraction_bits=7, smallest_normal=2.0**-126, quantum=2.0**-133, infinity=0x7F80
    ),
    "F16": FloatFormat(
        dtype="F16", storage="<u2", fraction_bits=10, smallest_normal=2.0**-14, quantum=2.0**-24, infinity=0x7C00
    ),
    "F32": FloatFormat(
        dtype="F32", storage="<u4", fraction_bits=23, smallest_normal=2.0**-126, quantum=2.0**-149, infinity=0x7F800000
    ),
}


def format_of(dtype: str) -> FloatFormat:
    """Return the format of a safetensors dtype.

    Raises:
        UnsupportedModelError: it is not one of `FORMATS`.
    """
    found = FORMATS.get(dtype)
    if found is None:
        raise UnsupportedModelError(
            f"tensors of dtype {printable(dtype, 40)} cannot be edited",
            hint=f"only {', '.join(FORMATS)} can",
            dtype=dtype,
        )
    return found


def decode(raw: bytes | memoryview, dtype: str, shape: Sequence[int]) -> Float64Array:
    """Return stored values as float64 of this shape, exactly.

    Raises:
        UnsupportedModelError: the dtype is not one of `FORMATS`.
    """
    form = format_of(dtype)
    with np.errstate(invalid="ignore"):  # A signalling NaN, in bytes that nobody computed, is told of by numpy.
        return single_from_bits(np.frombuffer(raw, form.storage), form).astype(np.float64).reshape(tuple(shape))


def encode(values: Float64Array, dtype: str) -> bytes:
    """Return float64 values rounded once, half to even, to `dtype`; an overflow becomes an infinity.

    Raises:
        UnsupportedModelError: the dtype is not one of `FORMATS`.
    """
    return round_once(np.ascontiguousarray(values, np.float64).reshape(-1), format_of(dtype)).tobytes()


def single_from_bits(bits: NDArray[Any], form: FloatFormat) -> NDArray[np.float32]:
    """Return stored bits as float32 values of the same shape, exactly: all three formats are subsets of it."""
    if form.dtype == "F32":
        return bits.view("<f4")
    wide = bits.astype("<u4")
    if form.dtype == "BF16":
        wide <<= np.uint32(16)
        return wide.view("<f4")
    # numpy's own conversion takes many times as long as moving the fields and scaling by the difference of the biases, 127 − 15,
    # which is exact for subnormal numbers too. Only NaN and infinities need the other way.
    magnitude = wide & np.uint32(0x7FFF)
    if (magnitude >= form.infinity).any():
        return bits.view("<f2").astype("<f4")
    magnitude <<= np.uint32(13)
    value = magnitude.view("<f4")
    value *= np.float32(2.0**112)
    wide &= np.uint32(0x8000)
    wide <<= np.uint32(16)
    wide |= value.view("<u4")
    return wide.view("<f4")


def bits_of_representable(values: NDArray[Any], form: FloatFormat) -> NDArray[Any]:
    """Return the stored bits of values that the format holds exactly; an overflow becomes an infinity."""
    if form.dtype == "F16":
        return values.astype("<f2").view("<u2")
    single = values.astype("<f4", copy=False).view("<u4")
    return single if form.dtype == "F32" else (single >> np.uint32(16)).astype("<u2")


def bits_of_normal(values: NDArray[Any], form: FloatFormat) -> NDArray[Any]:
    """Do as `bits_of_representable`, for normal numbers and overflows only; others give meaningless bits, in less time."""
    if form.dtype != "F16":
        return bits_of_representable(values, form)
    single = values.astype("<f4", copy=False).view("<u4")
    magnitude = single & np.uint32(0x7FFFFFFF)
    magnitude >>= np.uint32(13)
    magnitude -= np.uint32((127 - 15) << 10)
    np.minimum(magnitude, np.uint32(form.infinity), out=magnitude)
    sign = single >> np.uint32(16)
    sign &= np.uint32(0x8000)
    magnitude |= sign
    return magnitude.astype("<u2")


def round_once(values: Float64Array, form: FloatFormat) -> NDArray[Any]:
    """Return the stored bits of float64 values `[n]`, each rounded once, half to even.

    Works on the bits of float64, where cutting the fraction to the format's length rounds normal numbers, carries
    included. Below the smallest normal number, adding and subtracting 1.5·2⁵² quanta leaves a whole number of quanta.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if form.dtype == "F32":
            return bits_of_representable(values, form)
        cut = 52 - form.fraction_bits
        bits = values.view(np.int64)
        even = (bits >> cut) & 1
        even += (1 << (cut - 1)) - 1
        even += bits
        even &= -(1 << cut)
        rounded = even.view(np.float64)
        special = np.flatnonzero(~(np.abs(values) >= form.smallest_normal))
        if special.size:
            small = values[special]
            shift = 1.5 * 2.0**52 * form.quantum
            rounded[special] = np.copysign((small + shift) - shift, small)
        return bits_of_representable(rounded, form)


def sum_to_odd(terms: list[float]) -> float:
    """Return the exact sum of floats rounded to odd: exact, or the neighbour whose last bit is 1.

    Rounding the result once more to a format of at most 51 bits gives the exact sum rounded once (Boldo and Melquiond,
    Emulation of FMA and correctly rounded sums, 2008). `math.fsum` gives the sum rounded to nearest, and the sign of
    what that leaves out.
    """
    nearest = math.fsum(terms)
    rest = math.fsum([*terms, -nearest])
    if rest == 0 or nearest.hex().split("p")[0][-1] in "13579bdf":
        return nearest
    return math.nextafter(nearest, math.copysign(math.inf, rest))


def check_processor() -> None:
    """Refuse to work where a library has told the processor to flush subnormal numbers to zero.

    `torch.set_flush_denormal(True)`, and libraries linked with `-ffast-math`, do so for a whole thread, silently.

    Raises:
        NumericsError: this thread flushes them.
    """
    smallest = np.array([1], "<u4").view("<f4")
    if smallest.astype(np.float64)[0] != 2.0**-149 or np.array([2.0**-149]).astype(np.float32)[0] == 0:
        raise NumericsError(
            "this process flushes subnormal numbers to zero, so the bytes would not be exact",
            hint="call `torch.set_flush_denormal(False)`, or run `reviver` from its command line",
        )
