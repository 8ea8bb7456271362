"""The filter against the plain formula (1 − U Uᵀ) Δ (1 − V Vᵀ) in numpy, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reviver.spectral.basis import SpectralBasis, compute_basis
from reviver.spectral.drift import norm_growth, singular_vector_similarity, subspace_similarity
from reviver.spectral.factors import balance, compact, factored_norm, finite
from reviver.spectral.filter import captured_fraction, filter_dense, filter_factors, leakage, leakage_dense


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_filter(delta: Tensor, basis: SpectralBasis, rank: int) -> np.ndarray:
    left, right = basis.left_DK[:, :rank].numpy(), basis.right_EK[:, :rank].numpy()
    return (np.eye(len(left)) - left @ left.T) @ delta.numpy() @ (np.eye(len(right)) - right @ right.T)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 30),
    columns=st.integers(2, 30),
    rank=st.integers(1, 12),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    seed=st.integers(0, 2**16),
    deficient=st.booleans(),
    transposed=st.booleans(),
)
def test_equals_the_plain_formula(
    rows: int, columns: int, rank: int, share: float, dtype: torch.dtype, seed: int, deficient: bool, transposed: bool
) -> None:
    weight = drawn(seed, rows, 2) @ drawn(seed + 1, 2, columns) if deficient else drawn(seed, rows, columns)
    weight = weight.T if transposed else weight
    protected = round(share * (min(rows, columns) - 1))
    basis = compute_basis(weight.to(dtype), protected)
    left, right = drawn(seed + 2, weight.shape[0], rank).to(dtype), drawn(seed + 3, rank, weight.shape[1]).to(dtype)
    exact = left.double() @ right.double()
    wanted = plain_filter(exact, basis, protected)
    safe_left, safe_right = filter_factors(left, right, basis, protected)
    assert safe_left.dtype == safe_right.dtype == torch.float64
    assert safe_left.shape == left.shape
    assert safe_right.shape == right.shape
    scale = float(exact.norm())
    assert np.linalg.norm((safe_left @ safe_right).numpy() - wanted) < 1e-13 * scale
    assert np.linalg.norm(filter_dense(exact, basis, protected).numpy() - wanted) < 1e-13 * scale
    # Orthogonal to what is protected, in float64 and after the factors are rounded for the patch.
    assert max(leakage(safe_left, safe_right, basis, protected)) < 1e-10
    if np.linalg.norm(wanted) > 1e-3 * scale:
        assert max(leakage(safe_left.float(), safe_right.float(), basis, protected)) < 1e-5
    # Filtering what is filtered changes nothing.
    again_left, again_right = filter_factors(safe_left, safe_right, basis, protected)
    assert float((again_left - safe_left).norm()) <= 1e-14 * float(safe_left.norm())
    assert float((again_right - safe_right).norm()) <= 1e-14 * float(safe_right.norm())


@pytest.mark.parametrize("outside", [1e-2, 1e-6, 1e-9, 1e-12])
def test_an_update_almost_wholly_inside_comes_out_orthogonal(outside: float) -> None:
    basis = compute_basis(drawn(0, 80, 110), 20)
    left = basis.left_DK @ drawn(1, 20, 6) + outside * drawn(2, 80, 6)
    right = drawn(3, 6, 20) @ basis.right_EK.T + outside * drawn(4, 6, 110)
    safe = filter_factors(left, right, basis, 20)
    assert float(safe[0].norm()) > 0
    assert max(leakage(*safe, basis, 20)) < 1e-12
    dense = filter_dense(left @ right, basis, 20)
    if outside > 1e-7:
        assert max(leakage_dense(dense, basis, 20)) < 1e-12


def test_an_update_wholly_inside_becomes_zero() -> None:
    basis = compute_basis(drawn(0, 80, 110), 20)
    left, right = basis.left_DK @ drawn(1, 20, 6), drawn(3, 6, 110)
    safe_left, safe_right = filter_factors(left, right, basis, 20)
    assert not safe_left.any()
    assert not safe_right.any()
    assert not filter_dense(left @ right, basis, 20).any()
    assert leakage(safe_left, safe_right, basis, 20) == (0.0, 0.0)


def test_a_component_that_lies_inside_takes_no_other_with_it() -> None:
    basis = compute_basis(drawn(0, 40, 50), 10)
    left, right = drawn(1, 40, 3), drawn(2, 3, 50)
    left[:, 1] = basis.left_DK[:, 4]
    safe_left, safe_right = filter_factors(left, right, basis, 10)
    assert (safe_left.norm(dim=0) > 0).tolist() == [True, False, True]
    assert (safe_right.norm(dim=1) > 0).tolist() == [True, False, True]


def test_one_projection_would_leak_what_two_do_not() -> None:
    """The reason for projecting twice: METHODS of the field report 5e-4 after one float32 projection."""
    basis = compute_basis(drawn(0, 300, 300), 100)
    inside = basis.left_DK @ drawn(1, 100, 4) + 1e-4 * drawn(2, 300, 4)
    once = inside.float() - basis.left_DK.float() @ (basis.left_DK.float().T @ inside.float())
    right = drawn(3, 4, 300)
    assert leakage(once, right, basis, 100)[0] > 1e-4
    left, _ = filter_factors(inside, right, basis, 100)
    assert leakage(left.float(), right, basis, 100)[0] < 1e-7


def test_protecting_nothing_changes_nothing() -> None:
    basis = compute_basis(drawn(0, 9, 7), 3)
    left, right = drawn(1, 9, 2), drawn(2, 2, 7)
    safe = filter_factors(left, right, basis, 0)
    assert torch.equal(safe[0], left)
    assert torch.equal(safe[1], right)
    assert leakage(left, right, basis, 0) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least as wide"):
        filter_factors(left, right, basis, 4)


def test_leakage_is_the_share_inside() -> None:
    basis = compute_basis(drawn(0, 30, 40), 12)
    left, right = drawn(1, 30, 5), drawn(2, 5, 40)
    delta = (left @ right).numpy()
    wanted = (
        np.linalg.norm(basis.left_DK[:, :8].numpy().T @ delta) / np.linalg.norm(delta),
        np.linalg.norm(delta @ basis.right_EK[:, :8].numpy()) / np.linalg.norm(delta),
    )
    assert leakage(left, right, basis, 8) == pytest.approx(wanted, rel=1e-12)
    assert leakage_dense(left @ right, basis, 8) == pytest.approx(wanted, rel=1e-12)


# Norms and forms of factors.


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 20), rank=st.integers(0, 30), seed=st.integers(0, 2**16))
def test_the_factored_norm_is_the_norm_of_the_product(rows: int, columns: int, rank: int, seed: int) -> None:
    left, right = drawn(seed, rows, rank), drawn(seed + 1, rank, columns)
    assert factored_norm(left, right) == pytest.approx(float((left @ right).norm()), rel=1e-12, abs=1e-13)


def test_the_factored_norm_survives_cancellation() -> None:
    left, right, small = drawn(0, 50, 4), drawn(1, 4, 60), 1e-9 * drawn(2, 4, 60)
    both_left, both_right = torch.cat([left, left], 1), torch.cat([right, -right + small])
    # What the two sums leave over, computed without cancellation.
    truth = float((left @ (both_right[:4] + both_right[4:])).norm())
    assert factored_norm(both_left, both_right) == pytest.approx(truth, rel=1e-5)
    by_grams = float(((both_left.T @ both_left) * (both_right @ both_right.T)).sum().clamp_min(0).sqrt())
    assert by_grams != pytest.approx(truth, rel=1e-2)


def test_balancing_changes_no_bit_of_the_product() -> None:
    left, right = drawn(0, 20, 5) * 1e-30, drawn(1, 5, 30) * 1e25
    left[:, 3] = 0
    even_left, even_right = balance(left, right)
    assert torch.equal(even_left @ even_right, left @ right)
    ratio = even_left.norm(dim=0)[[0, 1, 2, 4]] / even_right.norm(dim=1)[[0, 1, 2, 4]]
    assert bool(((ratio > 0.4) & (ratio < 2.5)).all())


def test_compact_factors_are_the_same_matrix_in_fewest_components() -> None:
    left, right = drawn(0, 20, 3) @ drawn(1, 3, 9), drawn(2, 9, 30)
    few_left, few_right = compact(left, right)
    assert few_left.shape == (20, 3)
    assert float((few_left @ few_right - left @ right).norm()) < 1e-13 * float((left @ right).norm())
    values = np.linalg.svd((left @ right).numpy(), compute_uv=False)[:3]
    assert few_left.norm(dim=0).square().numpy() == pytest.approx(values, rel=1e-12)
    assert compact(torch.zeros(4, 2), torch.zeros(2, 3))[0].shape == (4, 0)


def test_finite() -> None:
    assert finite(torch.ones(3), torch.empty(0), torch.full((4,), 3e38))
    assert not finite(torch.ones(3), torch.tensor([1.0, float("nan")]))
    assert not finite(torch.tensor([float("-inf"), float("inf")]))


def test_captured_fraction_against_its_definition() -> None:
    weight, left, right = drawn(0, 40, 50).mul(0.02).bfloat16(), drawn(1, 40, 4), drawn(2, 4, 50)
    delta = 0.003 * float(weight.double().norm()) / float((left @ right).norm()) * left @ right
    factors = left * (0.003 * float(weight.double().norm()) / float((left @ right).norm())), right
    change = (weight.double() + delta).bfloat16().double() - weight.double()
    wanted = float((change * delta).sum() / delta.square().sum())
    assert captured_fraction(change, *factors) == pytest.approx(wanted, rel=1e-12)
    assert 0.7 < wanted < 1.1
    assert captured_fraction(delta, *factors) == pytest.approx(1.0)
    assert captured_fraction(change * 0, *factors) == 0
    assert captured_fraction(change, left * 0, right) == 1


# Drift.


def test_drift_of_an_unchanged_and_of_a_turned_weight() -> None:
    weight = drawn(0, 30, 40)
    base = compute_basis(weight, 6)
    assert subspace_similarity(base, base, 6) == pytest.approx((1, 1))
    left, right = singular_vector_similarity(base, base, 6)
    assert torch.allclose(left, torch.ones(6).double())
    assert torch.allclose(right, torch.ones(6).double())
    # The next six directions made the largest: the leading subspaces are then orthogonal.
    wide = compute_basis(weight, 12)
    turned = weight + 100 * wide.left_DK[:, 6:] @ wide.right_EK[:, 6:].T
    edited = compute_basis(turned, 6)
    assert subspace_similarity(base, edited, 6) == pytest.approx((0, 0), abs=1e-12)
    assert norm_growth(base, edited) == pytest.approx(float(turned.norm() / weight.norm()))


def test_drift_against_the_definition() -> None:
    first, second = compute_basis(drawn(0, 30, 40), 8), compute_basis(drawn(0, 30, 40) + 0.3 * drawn(1, 30, 40), 8)
    overlap = first.left_DK[:, :5].numpy().T @ second.left_DK[:, :5].numpy()
    assert subspace_similarity(first, second, 5)[0] == pytest.approx(np.sum(overlap**2) / 5)
    assert singular_vector_similarity(first, second, 5)[0].numpy() == pytest.approx(np.abs(np.diag(overlap)))
    with pytest.raises(ValueError, match="at least as many vectors"):
        subspace_similarity(first, second, 9)


def test_a_filtered_update_keeps_the_protected_directions_exactly() -> None:
    """What the filter is for: W + Δ has the protected singular triplets of W, whatever Δ was."""
    weight = drawn(0, 30, 40)
    basis = compute_basis(weight, 7)
    left, right = filter_factors(drawn(1, 30, 5), drawn(2, 5, 40), basis, 7)
    edited = weight + left @ right
    values = basis.singular_values[:7]
    assert float((edited @ basis.right_EK - basis.left_DK * values).norm()) < 1e-12
    assert float((edited.T @ basis.left_DK - basis.right_EK * values).norm()) < 1e-12
