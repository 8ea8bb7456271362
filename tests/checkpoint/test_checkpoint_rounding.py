"""The rounding against Fractions, entry by entry: no float takes part in the expected values."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from checkpoint_samples import (
    SIGN,
    STORAGE,
    TORCH,
    bits_of,
    expected_matrix,
    make_checkpoint,
    sample_delta,
    value_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reviver.checkpoint import rounding, settle
from reviver.checkpoint.delta import DenseDelta, LowRankDelta
from reviver.checkpoint.floats import FORMATS, bits_of_normal, decode, encode, single_from_bits
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.rounding import rounded_sum, tensor_chunks
from reviver.errors import BaseMismatchError, NumericsError, UnsupportedModelError

DTYPES = ("BF16", "F16", "F32")
INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


def matrix(values: list[list[float]]) -> np.ndarray:
    return np.array(values, np.float32)


def low_rank(left: list[list[float]], right: list[list[float]]) -> LowRankDelta:
    return LowRankDelta(matrix(left), matrix(right))


def run(bits: np.ndarray, deltas: list, dtype: str) -> np.ndarray:
    raw = rounded_sum(bits.astype(STORAGE[dtype]).tobytes(), dtype, deltas)
    return np.frombuffer(raw, STORAGE[dtype]).reshape(bits.shape)


def bits_from(values: list[list[float]], dtype: str) -> np.ndarray:
    return np.array([[bits_of(Fraction(value), dtype) for value in row] for row in values], STORAGE[dtype])


# Values at which float arithmetic goes wrong: powers of two far apart, their neighbours, subnormal numbers, exact cancellations.
exponents = st.integers(-60, 40)
nasty_floats = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 1.5, 2.0**-24, 2.0**-12, 3.0, 1 + 2.0**-23, 2.0**-149, 2.0**-126]),
    st.builds(lambda sign, exponent, tail: sign * (1 + tail * 2.0**-23) * 2.0**exponent, st.sampled_from([1, -1]), exponents,
              st.sampled_from([0, 0, 1, 2, 2**22, 2**23 - 1])),
    st.floats(-4, 4, width=32),
)  # fmt: skip


@st.composite
def sums(draw: st.DrawFn) -> tuple[str, np.ndarray, list]:
    dtype = draw(st.sampled_from(DTYPES))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    largest = INFINITY[dtype] - 1
    own = st.one_of(
        st.integers(0, largest),
        st.sampled_from([0, 1, 2, largest >> 1, (largest >> 1) + 1]),
        st.floats(-4, 4).map(lambda value: bits_of(Fraction(value), dtype)),
    ).flatmap(lambda bits: st.sampled_from([bits, bits ^ SIGN[dtype]]))
    bits = np.array(draw(st.lists(own, min_size=rows * columns, max_size=rows * columns)), STORAGE[dtype])

    def values(height: int, width: int) -> np.ndarray:
        drawn = draw(st.lists(nasty_floats, min_size=height * width, max_size=height * width))
        return np.array(drawn, np.float32).reshape(height, width)

    deltas: list = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            deltas.append(DenseDelta(values(rows, columns)))
        else:
            rank = draw(st.integers(1, 3))
            deltas.append(LowRankDelta(values(rows, rank), values(rank, columns)))
    if draw(st.booleans()):
        # The same products again with the other sign: the sum cancels, wholly or but for what comes after.
        first = deltas[0]
        back = DenseDelta(-first.values) if isinstance(first, DenseDelta) else LowRankDelta(-first.left, first.right)
        deltas.insert(draw(st.integers(0, len(deltas))), back)
    return dtype, bits.reshape(rows, columns), deltas


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sums())
def test_any_sum_is_rounded_once(sample: tuple[str, np.ndarray, list]) -> None:
    dtype, bits, deltas = sample
    try:
        expected = expected_matrix(bits, deltas, dtype)
    except AssertionError:
        with pytest.raises(NumericsError, match="overflows"):
            run(bits, deltas, dtype)
        return
    np.testing.assert_array_equal(run(bits, deltas, dtype), expected)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sums())
def test_any_sum_is_rounded_once_at_length(sample: tuple[str, np.ndarray, list]) -> None:
    test_any_sum_is_rounded_once.hypothesis.inner_test(sample)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_even_and_near_ties_to_their_side(dtype: str) -> None:
    fraction_bits = {"BF16": 7, "F16": 10, "F32": 23}[dtype]
    gap = 2.0**-fraction_bits
    bits = bits_from([[1.0, 1 + gap, -1.0, -1 - gap, 1.0, 1 + gap]], dtype)
    half = gap / 2
    tie = matrix([[half, half, -half, -half, half, -half]])
    # (1 + 2⁻²³)(1 − 2⁻²³) − 1 = −2⁻⁴⁶, and 2⁻⁵⁰ of that is far below anything that float64 keeps beside 1.
    hair = low_rank([[(1 + 2.0**-23) * 2.0**-50, 2.0**-50]], [[1 - 2.0**-23] * 6, [-1.0] * 6])
    for deltas in ([DenseDelta(tie)], [DenseDelta(tie), hair], [hair, DenseDelta(tie)], [hair]):
        np.testing.assert_array_equal(run(bits, deltas, dtype), expected_matrix(bits, deltas, dtype))
    exact_tie = run(bits, [DenseDelta(tie)], dtype)
    below = run(bits, [DenseDelta(tie), hair], dtype)
    assert exact_tie[0, 1] == bits[0, 1] + 1, "1 + gap is odd: the tie goes up to the even neighbour"
    assert below[0, 1] == bits[0, 1], "a hair below the tie: down"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiny", [1e-30, -1e-30, 2.0**-140, -(2.0**-140)])
def test_a_hair_decides_a_tie_of_every_base_value(dtype: str, tiny: float) -> None:
    form = FORMATS[dtype]
    random = np.random.default_rng(5)
    lowest = int(np.array(2.0**-30 if dtype != "F16" else 2.0**-10, np.float32).view(np.uint32))
    highest = int(np.array(2.0**10, np.float32).view(np.uint32))
    values = random.integers(lowest, highest, 200).astype(np.uint32).view(np.float32).astype(np.float64)
    bits = np.frombuffer(encode(values, dtype), form.storage).reshape(10, 20)
    gaps = [[float(value_of(int(own) + 1, dtype) - value_of(int(own), dtype)) / 2 for own in row] for row in bits]
    deltas = [DenseDelta(matrix(gaps)), low_rank([[tiny]] * 10, [[1.0] * 20])]
    result = run(bits, deltas, dtype)
    np.testing.assert_array_equal(result, bits + (1 if tiny > 0 else 0))
    np.testing.assert_array_equal(run(bits, deltas[:1], dtype), bits + (bits & 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_delta_keeps_every_base_bit_pattern(dtype: str) -> None:
    if dtype == "F32":
        patterns = np.array(
            [0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 0x3F800000], "<u4"
        ).reshape(1, -1)
    else:
        patterns = np.arange(65536, dtype="<u2").reshape(256, 256)
    rows, columns = patterns.shape
    zero = LowRankDelta(np.zeros((rows, 2), np.float32), np.ones((2, columns), np.float32))
    cancelling = LowRankDelta(np.ones((rows, 2), np.float32), matrix([[1.0] * columns, [-1.0] * columns]))
    dense = DenseDelta(np.zeros((rows, columns), np.float32))
    negative = DenseDelta(-np.zeros((rows, columns), np.float32))
    # No row and no column is zero, and yet every product is.
    missing = LowRankDelta(matrix([[1.0, 0.0]] * rows), matrix([[0.0] * columns, [1.0] * columns]))
    for deltas in ([zero], [dense], [negative], [cancelling], [missing], [zero, cancelling, dense]):
        np.testing.assert_array_equal(run(patterns, deltas, dtype), patterns)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_signs(dtype: str) -> None:
    bits = bits_from([[1.0, -1.0, 0.0, 0.0]], dtype)
    bits[0, 3] = SIGN[dtype]
    deltas = [
        low_rank([[1.0]], [[-1.0, 1.0, 2.0**-149, -(2.0**-149)]]),
        low_rank([[2.0**-140]], [[0.0, 0.0, 2.0**-100, -1.0]]),
    ]
    result = run(bits, deltas, dtype)
    np.testing.assert_array_equal(result, expected_matrix(bits, deltas, dtype))
    assert result[0, 0] == 0 and result[0, 1] == 0, "an exact cancellation is +0"
    if dtype == "F16":
        assert result[0, 2] == 0 and result[0, 3] == SIGN[dtype], "an underflow keeps the sign of the sum"


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_results(dtype: str) -> None:
    random = np.random.default_rng(1)
    top = 64 if dtype == "BF16" else 300
    bits = random.integers(0, top, (6, 7)).astype(STORAGE[dtype]) | (
        random.integers(0, 2, (6, 7)) * SIGN[dtype]
    ).astype(STORAGE[dtype])
    quantum = float(value_of(1, dtype))
    left = random.integers(-5, 5, (6, 2)).astype(np.float32)
    right = np.array(random.integers(-4000, 4000, (2, 7)) / 4096 * 8 * quantum * 2**10, np.float32)
    deltas = [LowRankDelta(left / 1024, right), DenseDelta(np.full((6, 7), max(quantum / 2, 2.0**-149), np.float32))]
    np.testing.assert_array_equal(run(bits, deltas, dtype), expected_matrix(bits, deltas, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_is_refused_just_where_it_begins(dtype: str) -> None:
    largest = INFINITY[dtype] - 1
    bits = np.array([[0, largest, largest ^ SIGN[dtype]]], STORAGE[dtype])
    half = float(value_of(largest, dtype) - value_of(largest - 1, dtype)) / 2
    below = float(np.nextafter(np.float32(half), np.float32(0)))
    np.testing.assert_array_equal(run(bits, [DenseDelta(matrix([[0, below, -below]]))], dtype), bits)
    for column, value in ((1, half), (2, -half)):
        delta = np.zeros((1, 3), np.float32)
        delta[0, column] = value
        with pytest.raises(NumericsError, match=f"overflows {dtype} at row 7, column {column}"):
            rounded_sum(bits.tobytes(), dtype, [DenseDelta(delta)], name="tensor `x`", first_row=7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", ["nan", "inf"])
def test_a_base_value_that_is_no_number_is_kept_or_refused(dtype: str, special: str) -> None:
    bits = bits_from([[1.0, 1.0], [1.0, 1.0]], dtype)
    bits[1, 0] = INFINITY[dtype] + (1 if special == "nan" else 0)
    touching = low_rank([[1.0], [1.0]], [[1.0, 1.0]])
    around = low_rank([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]])
    cancelling = low_rank([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [-1.0, 1.0]])
    with pytest.raises(NumericsError, match="row 1, column 0") as caught:
        run(bits, [touching], dtype)
    assert special in caught.value.message and caught.value.hint
    for kept in (around, cancelling):
        assert run(bits, [kept], dtype)[1, 0] == bits[1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_no_number_is_refused(dtype: str, value: float) -> None:
    bits = bits_from([[1.0, 1.0]], dtype)
    bad = matrix([[0.0, value]])
    for delta in (
        DenseDelta(bad),
        LowRankDelta(matrix([[1.0]]), bad),
        LowRankDelta(matrix([[value]]), matrix([[0.0, 0.0]])),
    ):
        with pytest.raises(NumericsError, match="NaN or an infinity"):
            run(bits, [delta], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_middling_tensor_entry_by_entry(dtype: str) -> None:
    rows, columns = 24, 40
    base = 0.02 * torch.randn((rows, columns), generator=torch.Generator().manual_seed(3))
    bits = base.to(TORCH[dtype]).view(torch.int16 if dtype != "F32" else torch.int32).numpy().view(STORAGE[dtype])
    deltas = [LowRankDelta(*sample_delta(rows, columns, 12, seed=seed)) for seed in range(3)]
    np.testing.assert_array_equal(run(bits, deltas, dtype), expected_matrix(bits, deltas, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_do_not_depend_on_order_blocks_or_arithmetic(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = 37, 53
    random = np.random.default_rng(7)
    raw = encode(0.02 * random.standard_normal((rows, columns)), dtype)
    deltas: list = [
        LowRankDelta(*sample_delta(rows, columns, 5, seed=seed, scale=10.0 ** -(seed + 1))) for seed in range(3)
    ]
    sparse = random.standard_normal((rows, columns)).astype(np.float32)
    sparse[random.random((rows, columns)) < 0.7] = 0
    deltas.append(DenseDelta(sparse))
    expected = rounded_sum(raw, dtype, deltas)
    for order in itertools.permutations(deltas):
        assert rounded_sum(raw, dtype, order) == expected
    together = LowRankDelta(
        np.concatenate([delta.left for delta in deltas[:3]], axis=1),
        np.concatenate([delta.right for delta in deltas[:3]]),
    )
    assert rounded_sum(raw, dtype, [together, deltas[3]]) == expected
    memory_mapped_like = [LowRankDelta(np.asfortranarray(delta.left), delta.right[:, ::1]) for delta in deltas[:3]]
    assert rounded_sum(raw, dtype, [*memory_mapped_like, deltas[3]]) == expected
    for block, piece, at_once, terms in (
        (8 * columns, 60, 7, 0),
        (16 * columns * 3, 10**6, 10**6, 10**6),
        (1, 1, 1, 0),
    ):
        monkeypatch.setattr(rounding, "BLOCK_BYTES", block)
        monkeypatch.setattr(rounding, "_PIECE_BYTES", piece)
        monkeypatch.setattr(rounding, "_TERMS_IN_SINGLE", terms)
        monkeypatch.setattr(settle, "_VALUES_AT_ONCE", at_once)
        assert rounded_sum(raw, dtype, deltas) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_patch_and_its_opposite_leave_the_base(dtype: str) -> None:
    rows, columns = 30, 50
    random = np.random.default_rng(2)
    values = 0.02 * random.standard_normal((rows, columns))
    values[random.random((rows, columns)) < 0.2] = 0
    raw = encode(values, dtype)
    left, right = sample_delta(rows, columns, 6, seed=4, scale=3.0)
    other = LowRankDelta(*sample_delta(rows, columns, 3, seed=5))
    there, back = LowRankDelta(left, right), LowRankDelta(-left, right)
    assert rounded_sum(raw, dtype, [there, back]) == raw
    assert rounded_sum(raw, dtype, [there, other, back]) == rounded_sum(raw, dtype, [other])


def test_badly_scaled_factors_are_settled_all_the_same() -> None:
    rows, columns = 16, 24
    left, right = sample_delta(rows, columns, 4, seed=9)
    scales = np.array([2.0**60, 2.0**-60, 2.0**30, 1.0], np.float32)
    raw = encode(0.02 * np.random.default_rng(0).standard_normal((rows, columns)), "BF16")
    assert rounded_sum(raw, "BF16", [LowRankDelta(left * scales, right / scales[:, None])]) == rounded_sum(
        raw, "BF16", [LowRankDelta(left, right)]
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_beyond_float32_that_cancel(dtype: str) -> None:
    huge = 2.0**100
    bits = bits_from([[1.0, 1.5, -0.25, 3.0]], dtype)
    for left, right in (
        ([[huge, huge]], [[huge] * 4, [-huge] * 4]),
        ([[huge, huge, 1.0]], [[huge] * 4, [-huge] * 4, [0.3, -0.3, 0.25, 2.0**-40]]),
        ([[2.0**127, 2.0**127, 1.0]], [[1.5] * 4, [-1.5] * 4, [0.3, -0.3, 0.25, 2.0**-40]]),
    ):
        deltas = [low_rank(left, right)]
        np.testing.assert_array_equal(run(bits, deltas, dtype), expected_matrix(bits, deltas, dtype))


def test_a_long_chain() -> None:
    rows, columns = 5, 6
    raw = encode(0.02 * np.random.default_rng(1).standard_normal((rows, columns)), "BF16")
    deltas = [LowRankDelta(*sample_delta(rows, columns, 30, seed=seed, scale=0.01)) for seed in range(40)]
    bits = np.frombuffer(raw, "<u2").reshape(rows, columns)
    np.testing.assert_array_equal(run(bits, deltas, "BF16"), expected_matrix(bits, deltas, "BF16"))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_decode_knows_every_pattern(dtype: str) -> None:
    patterns = np.arange(65536, dtype="<u2")
    expected = torch.from_numpy(patterns.view(np.int16)).view(TORCH[dtype]).double().numpy()
    np.testing.assert_array_equal(decode(patterns.tobytes(), dtype, (256, 256)).reshape(-1), expected)
    finite = patterns[np.isfinite(expected)]
    assert np.signbit(decode(np.array([SIGN[dtype]], "<u2").tobytes(), dtype, (1,)))[0]
    np.testing.assert_array_equal(
        np.frombuffer(encode(decode(finite.tobytes(), dtype, finite.shape), dtype), "<u2"), finite
    )
    normal = finite[(finite & INFINITY[dtype]) != 0]
    np.testing.assert_array_equal(bits_of_normal(single_from_bits(normal, FORMATS[dtype]), FORMATS[dtype]), normal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_encode_rounds_once(dtype: str) -> None:
    random = np.random.default_rng(8)
    largest = INFINITY[dtype] - 1
    values: list[float] = []
    for own in [0, 1, 2, 3, largest >> 1, largest - 1, *random.integers(0, largest, 400).tolist()]:
        low, high = value_of(int(own), dtype), value_of(int(own) + 1, dtype)
        middle = float((low + high) / 2)
        # The double neighbours of a tie are where rounding through a shorter format goes wrong.
        values += [middle, float(np.nextafter(middle, 0)), float(np.nextafter(middle, np.inf)), float(low)]
    values += [-value for value in values]
    expected = [bits_of(Fraction(value), dtype) for value in values]
    result = np.frombuffer(encode(np.array(values), dtype), STORAGE[dtype])
    for value, want, got in zip(values, expected, result.tolist(), strict=True):
        assert (got & (SIGN[dtype] - 1)) == (want & (SIGN[dtype] - 1)), value
    overflow = float(value_of(largest, dtype)) * 1.01
    assert np.frombuffer(encode(np.array([overflow, -overflow]), dtype), STORAGE[dtype]).tolist() == [
        INFINITY[dtype],
        INFINITY[dtype] | SIGN[dtype],
    ]


def test_one_rounding_is_not_two() -> None:
    """A value that torch's double → bfloat16, which goes through float32, rounds wrongly."""
    value = 1 + 2.0**-8 + 2.0**-40
    assert torch.tensor([value], dtype=torch.float64).bfloat16().item() == 1.0
    assert decode(encode(np.array([value]), "BF16"), "BF16", (1,))[0] == 1 + 2.0**-7


def test_flushed_subnormals_are_noticed() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(NumericsError, match="flushes subnormal"):
            rounded_sum(bytes(4), "F32", [DenseDelta(np.ones((1, 1), np.float32))])
    finally:
        torch.set_flush_denormal(False)


def test_shapes_and_dtypes_are_checked() -> None:
    delta = DenseDelta(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="don't fit"):
        rounded_sum(bytes(6), "BF16", [delta])
    with pytest.raises(ValueError, match="don't fit"):
        rounded_sum(bytes(8), "BF16", [delta, DenseDelta(np.ones((1, 4), np.float32))])
    with pytest.raises(UnsupportedModelError, match="F64"):
        rounded_sum(bytes(32), "F64", [delta])
    with pytest.raises(ValueError, match="float32"):
        DenseDelta(np.ones((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit"):
        low_rank([[1.0]], [[1.0], [2.0]])
    assert rounded_sum(b"\x80\x3f", "BF16", []) == b"\x80\x3f"


def test_norms() -> None:
    left, right = sample_delta(20, 30, 4, seed=1)
    dense = left.astype(np.float64) @ right.astype(np.float64)
    low = LowRankDelta(left, right)
    assert low.frobenius_norm() == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    np.testing.assert_allclose(low.product(), dense, rtol=1e-12)
    assert DenseDelta(left).frobenius_norm() == pytest.approx(np.linalg.norm(left.astype(np.float64)), rel=1e-12)
    assert low.shape == (20, 30) and low.rank == 4 and low.rows(3, 5).shape == (2, 30)
    assert low.is_finite() and not DenseDelta(matrix([[np.nan]])).is_finite()
    assert LowRankDelta(left[:, :0], right[:0]).frobenius_norm() == 0


def test_chunks_are_the_tensor(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "base")
    folder = CheckpointFolder.open(tmp_path / "base")
    name = "model.layers.1.mlp.down_proj.weight"
    delta = LowRankDelta(*sample_delta(24, 40, 3))
    raw = folder.read_tensor(name)
    expected = rounded_sum(raw, "BF16", [delta])
    monkeypatch.setattr(rounding, "BLOCK_BYTES", 8 * 40 * 5)
    chunks = list(tensor_chunks(folder, name, [delta]))
    assert len(chunks) == 5 and b"".join(chunks) == expected
    assert b"".join(tensor_chunks(folder, name, [])) == raw
    with pytest.raises(BaseMismatchError, match="not the one that was pinned"):
        list(tensor_chunks(folder, name, [delta], base_sha256="0" * 64))
    with pytest.raises(BaseMismatchError, match=r"\[24, 40\] in the base and \[24, 41\] in the patch"):
        list(tensor_chunks(folder, name, [LowRankDelta(*sample_delta(24, 41, 3))]))
