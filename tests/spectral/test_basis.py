"""Bases against numpy's float64 SVD: values, backward errors and subspaces, never signs."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reviver.errors import NumericsError, UsageError
from reviver.spectral.basis import SpectralBasis, choose_rank, compute_basis
from reviver.spectral.iteration import leading_triplets

Method = Literal["svd", "gram", "iteration"]
METHODS: tuple[Method, ...] = ("svd", "gram", "iteration")


def orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def with_spectrum(rows: int, columns: int, values: Tensor, seed: int = 0) -> Tensor:
    count = len(values)
    return orthogonal(rows, count, seed) * values.double() @ orthogonal(columns, count, seed + 1).T


def backward_error(basis: SpectralBasis, weight: Tensor) -> float:
    """Return the largest of ‖W v − σ u‖, ‖Wᵀ u − σ v‖ and the losses of orthogonality, relative to σ₁."""
    values = basis.singular_values[: basis.width]
    exact, scale = weight.double(), max(float(basis.singular_values[0]), 1e-300)
    errors = [
        (exact @ basis.right_EK - basis.left_DK * values).norm(dim=0).max() / scale,
        (exact.T @ basis.left_DK - basis.right_EK * values).norm(dim=0).max() / scale,
        (basis.left_DK.T @ basis.left_DK - torch.eye(basis.width)).abs().max(),
        (basis.right_EK.T @ basis.right_EK - torch.eye(basis.width)).abs().max(),
    ]
    return max(float(error) for error in errors)


SPECTRA = {
    "flat with a large head": torch.cat([torch.linspace(3, 1.5, 12), torch.linspace(1, 0.3, 248)]),
    "condition 1e6": torch.logspace(0, -6, 260),
    "condition 1e12": torch.logspace(0, -12, 260),
    "rank 10": torch.linspace(2, 1, 10),
    "a tail of zeros": torch.cat([torch.linspace(1, 0.5, 200), torch.zeros(60)]),
    "clusters 1e-9 apart": torch.cat(
        [torch.full((5,), 3.0).double(), torch.full((6,), 3 - 1e-9).double(), torch.linspace(1, 0.1, 249).double()]
    ),
    "multiple values": torch.cat([torch.full((20,), 2.0), torch.full((240,), 1.0)]),
    "one huge": torch.cat([torch.tensor([1e5]), torch.linspace(1, 0.5, 259)]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SPECTRA)
def test_as_accurate_as_a_float64_svd(name: str, method: Method) -> None:
    weight = with_spectrum(260, 420, SPECTRA[name])
    left, values, right = np.linalg.svd(weight.numpy(), full_matrices=False)
    for width in (8, 30):
        basis = compute_basis(weight, width, method=method)
        assert backward_error(basis, weight) < 2e-14
        known = len(basis.singular_values)
        assert known == 260 or not basis.complete
        assert np.abs(basis.singular_values.numpy() - values[:known]).max() < 2e-14 * values[0]
        # The subspace is determined as well as the gap after it allows, by any method.
        gap = (values[width - 1] - values[width]) / values[0]
        if gap > 1e-8:
            for ours, theirs in ((basis.left_DK, left), (basis.right_EK, right.T)):
                lost = theirs[:, :width] - ours.numpy() @ (ours.numpy().T @ theirs[:, :width])
                assert np.linalg.norm(lost) < 1e-13 / gap


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    rank=st.integers(0, 24),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 2**16),
    share=st.floats(0, 1),
)
def test_any_shape_rank_and_type(
    rows: int, columns: int, rank: int, dtype: torch.dtype, method: Method, seed: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)).to(dtype)
    width = round(share * min(rows, columns))
    basis = compute_basis(weight, width, method=method)
    assert basis.shape == (rows, columns)
    assert basis.left_DK.shape == (rows, width)
    assert basis.right_EK.shape == (columns, width)
    assert basis.left_DK.dtype == basis.right_EK.dtype == torch.float64
    if width:
        assert backward_error(basis, weight) < 2e-14
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    assert np.allclose(
        basis.singular_values.numpy(), values[: len(basis.singular_values)], rtol=0, atol=1e-13 * (values[0] + 1e-300)
    )
    assert basis.frobenius == pytest.approx(float(np.linalg.norm(weight.double().numpy())), rel=1e-14, abs=1e-300)


@pytest.mark.parametrize("method", METHODS)
def test_the_transposed_weight_has_the_transposed_basis(method: Method) -> None:
    weight = torch.randn(230, 250, generator=torch.Generator().manual_seed(3))
    basis, transposed = compute_basis(weight, 5, method=method), compute_basis(weight.T, 5, method=method)
    signs = (basis.left_DK * transposed.right_EK).sum(0).sign()
    assert torch.allclose(basis.left_DK, transposed.right_EK * signs, atol=1e-11)
    assert torch.allclose(basis.right_EK, transposed.left_DK * signs, atol=1e-11)


def test_signs_do_not_depend_on_the_method() -> None:
    weight = with_spectrum(230, 300, torch.linspace(5, 1, 230))
    plain, gram, iterated = (compute_basis(weight, 6, method=method) for method in METHODS)
    for other in (gram, iterated):
        assert torch.allclose(plain.left_DK, other.left_DK, atol=1e-11)
        assert torch.allclose(plain.right_EK, other.right_EK, atol=1e-11)
    assert bool((plain.left_DK.gather(0, plain.left_DK.abs().argmax(0, keepdim=True)) > 0).all())


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e30, 1e38])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_scales(method: Method, scale: float) -> None:
    weight = with_spectrum(220, 240, torch.linspace(2, 1, 220)) * scale
    assert backward_error(compute_basis(weight, 9, method=method), weight) < 2e-14


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_an_orthonormal_basis(method: Method) -> None:
    basis = compute_basis(torch.zeros(210, 230), 7, method=method)
    assert backward_error(basis, torch.zeros(210, 230)) < 1e-14
    assert basis.frobenius == 0
    assert float(basis.singular_values.abs().max()) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(NumericsError):
        compute_basis(weight, 2)


def test_a_width_beyond_the_matrix_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no 4 singular vectors"):
        compute_basis(torch.ones(3, 5), 4)
    with pytest.raises(ValueError, match="cannot be narrowed"):
        compute_basis(torch.ones(3, 5), 2).narrow(3)


def test_without_the_spectrum_a_large_weight_gets_leading_values_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reviver.spectral.basis.LARGE_SIDE", 250)
    weight = with_spectrum(260, 300, SPECTRA["flat with a large head"])
    assert compute_basis(weight, 10).complete
    basis = compute_basis(weight, 10, spectrum=False)
    assert not basis.complete
    assert len(basis.singular_values) == 10
    assert basis.frobenius**2 == pytest.approx(
        float(SPECTRA["flat with a large head"].double().square().sum()), rel=1e-12
    )


@pytest.mark.parametrize("width", [1, 8, 9, 17, 33, 57, 65, 100])
def test_the_iteration_restarts_whatever_the_width(width: int) -> None:
    """The shorter side is longer than what one cycle holds, as it is in every model that the iteration is made for."""
    values = torch.cat((2.0 - torch.arange(100) / 100, torch.linspace(0.9, 0.5, 500)))
    weight = with_spectrum(600, 640, values).double()
    found = leading_triplets(weight, width)
    assert found is not None
    near_MK, singular_K, far_LK = found
    assert torch.allclose(singular_K, torch.linalg.svdvals(weight)[:width], rtol=1e-12)
    assert float((weight @ far_LK - near_MK * singular_K).abs().max()) < 1e-12
    for vectors in (near_MK, far_LK):
        assert float((vectors.T @ vectors - torch.eye(width)).abs().max()) < 1e-13


def test_a_basis_stored_in_float32_becomes_orthonormal_again() -> None:
    basis = compute_basis(with_spectrum(90, 120, torch.linspace(9, 1, 90)), 20)
    stored = SpectralBasis.restored(
        basis.left_DK.float(), basis.right_EK.float(), basis.singular_values, basis.frobenius
    )
    for restored, exact in ((stored.left_DK, basis.left_DK), (stored.right_EK, basis.right_EK)):
        assert float((restored.T @ restored - torch.eye(20)).abs().max()) < 2e-15
        assert float((restored - exact).abs().max()) < 1e-6
        for k in (1, 7, 20):
            assert float((exact[:, :k] - restored[:, :k] @ (restored[:, :k].T @ exact[:, :k])).abs().max()) < 2e-7
    assert torch.equal(stored.narrow(7).left_DK, stored.left_DK[:, :7])
    assert torch.allclose(stored.reorthonormalised().left_DK, stored.left_DK, atol=1e-15)


# The protected rank.


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(2, 40), energy=st.floats(0.01, 0.99))
def test_energy_chooses_the_smallest_rank_that_reaches_it(seed: int, count: int, energy: float) -> None:
    values = np.sort(np.random.default_rng(seed).uniform(0.1, 3, count))[::-1].copy()
    values[np.abs(np.diff(values, append=0)) < 1e-4] += 1e-3  # apart, so that the gap rule stays out of it
    values = np.sort(values)[::-1].copy()
    shares = np.cumsum(values**2) / np.sum(values**2)
    wanted = next(k for k in range(1, count + 1) if shares[k - 1] >= energy)
    tensor = torch.from_numpy(values)
    if wanted == count:
        with pytest.raises(UsageError):
            choose_rank(tensor, energy=energy)
        return
    chosen = choose_rank(tensor, energy=energy)
    if chosen.moved_from is None:
        assert chosen.rank == wanted
        assert chosen.energy == pytest.approx(shares[wanted - 1])
    else:
        assert chosen.moved_from == wanted


def test_a_rank_inside_a_cluster_moves_to_its_end() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 2.0 - 1e-6, 2.0 - 2e-6, 1.0], dtype=torch.float64)
    assert choose_rank(values, rank=2).rank == 2
    assert choose_rank(values, rank=2).moved_from is None
    for asked in (3, 4):
        assert (choose_rank(values, rank=asked).rank, choose_rank(values, rank=asked).moved_from) == (5, asked)
    assert choose_rank(values, rank=5).moved_from is None


def test_a_cluster_that_runs_to_the_end_is_left_out() -> None:
    values = torch.tensor([4.0, 3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    choice = choose_rank(values, rank=3)
    assert (choice.rank, choice.moved_from, choice.energy) == (2, 3, 1.0)


@pytest.mark.parametrize("values", [torch.ones(6), torch.zeros(6)])
def test_a_weight_without_any_gap_has_no_dominant_subspace(values: Tensor) -> None:
    with pytest.raises(NumericsError, match="no dominant directions"):
        choose_rank(values, rank=3)


def test_leading_values_and_the_norm_are_enough_for_an_energy() -> None:
    values = torch.linspace(5, 1, 50, dtype=torch.float64)
    whole = choose_rank(values, energy=0.3)
    leading = choose_rank(values[: whole.rank + 5], energy=0.3, frobenius=float(values.norm()))
    assert leading.rank == whole.rank
    assert leading.energy == pytest.approx(whole.energy)


@pytest.mark.parametrize(
    ("rank", "energy"),
    [
        (None, None),
        (3, 0.5),
        (0, None),
        (-1, None),
        (6, None),
        (7, None),
        (None, 0.0),
        (None, 1.0),
        (None, -0.1),
        (None, math.nan),
    ],
)
def test_choices_out_of_range(rank: int | None, energy: float | None) -> None:
    with pytest.raises(UsageError) as caught:
        choose_rank(torch.linspace(3, 1, 6), rank=rank, energy=energy)
    assert caught.value.hint
    assert caught.value.exit_code == 2
