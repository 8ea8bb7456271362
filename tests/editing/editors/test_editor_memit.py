"""MEMIT, its memory, its constrained form and the second moment, against explicit inverses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import constrained, drawn, exact, memit, orthonormal, relative, spectrum_moment

from reviver.editing.editors import FactoredUpdate, LayerProblem, ProtectedSpace, SecondMoment, get_editor
from reviver.editing.editors.memory import KeyMemory
from reviver.errors import NumericsError
from reviver.spectral.basis import compute_basis
from reviver.spectral.filter import leakage

EDITOR = get_editor("memit")


def solved(
    keys: torch.Tensor,
    residual: torch.Tensor,
    moment: SecondMoment,
    *,
    memory: KeyMemory | None = None,
    protected: ProtectedSpace | None = None,
) -> FactoredUpdate:
    problem = LayerProblem(keys_IN=keys, residual_ON=residual, second_moment=moment, memory=memory, protected=protected)
    update = EDITOR.solve(problem, EDITOR.settings({"memory": "none" if memory is None else "keys"})).update
    assert isinstance(update, FactoredUpdate)
    assert update.left_OR.dtype == update.right_RI.dtype == torch.float64
    return update


@settings(max_examples=50, deadline=None)
@given(
    outputs=st.integers(1, 20),
    inputs=st.integers(1, 30),
    facts=st.integers(1, 40),
    earlier=st.integers(0, 70),
    weight=st.floats(0.01, 1e5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_textbook(
    outputs: int, inputs: int, facts: int, earlier: int, weight: float, dtype: torch.dtype, seed: int
) -> None:
    moment_II = drawn(seed, inputs, 3 * inputs + 3)
    moment_II = (moment_II @ moment_II.T / moment_II.shape[1]).float()
    keys, residual, before = (
        drawn(seed + 1, inputs, facts).to(dtype),
        drawn(seed + 2, outputs, facts).to(dtype),
        drawn(seed + 3, inputs, earlier).float(),
    )
    moment = SecondMoment(moment_II, weight, ridge=0)
    cost = weight * exact(moment_II)
    assert relative(solved(keys, residual, moment).dense(), memit(keys, residual, cost)) < 1e-9
    memory = KeyMemory.empty(inputs)
    for part in before.split(7, dim=1):
        memory = memory.with_keys(part)
        solved(keys, residual, moment, memory=memory)  # so that what is prepared is handed on and extended
    ours = solved(keys, residual, moment, memory=memory).dense()
    assert relative(ours, memit(keys, residual, cost + exact(before) @ exact(before).T)) < 1e-9
    assert memory.count == earlier
    assert memory.keys_IP.shape[1] <= inputs


@pytest.mark.parametrize("stored", [torch.float64, torch.float32])
def test_condition_1e6(stored: torch.dtype) -> None:
    moment_II = spectrum_moment(120, 1e6).to(stored)
    keys, residual = drawn(1, 120, 15), drawn(2, 60, 15)
    wanted = memit(keys, residual, 15000 * exact(moment_II))
    # With the default ridge within the accuracy promised, and without it to rounding.
    assert relative(solved(keys, residual, SecondMoment(moment_II, 15000)).dense(), wanted) < 1e-4
    assert relative(solved(keys, residual, SecondMoment(moment_II, 15000, ridge=0)).dense(), wanted) < 1e-9
    # What float32 would have given: the reason for float64.
    single = moment_II.float() * 15000 + (keys @ keys.T).float()
    assert relative((residual @ keys.T).float() @ torch.linalg.inv(single), wanted) > 1e-4


def test_a_component_belongs_to_its_fact() -> None:
    """Leaving out component r is solving with fact r's residual set to zero, its key still held in place."""
    moment = SecondMoment(spectrum_moment(30, 100), 3.0)
    keys, residual = drawn(1, 30, 6), drawn(2, 12, 6)
    update = solved(keys, residual, moment)
    without = residual.clone()
    without[:, 2] = 0
    rest = [0, 1, 3, 4, 5]
    again = solved(keys, without, moment)
    assert torch.allclose(update.left_OR[:, rest] @ update.right_RI[rest], again.dense(), atol=1e-13)
    # With a small cost each component brings its own key to its residual and leaves the others' alone.
    exact_fit = solved(keys, residual, SecondMoment(spectrum_moment(30, 100), 1e-9))
    assert torch.allclose(exact_fit.right_RI @ keys, torch.eye(6).double(), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(2, 16),
    inputs=st.integers(2, 24),
    facts=st.integers(1, 12),
    earlier=st.integers(0, 12),
    protected=st.integers(1, 23),
    condition=st.sampled_from([1.0, 1e3, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_the_constrained_solve_is_the_optimum_inside(
    outputs: int, inputs: int, facts: int, earlier: int, protected: int, condition: float, seed: int
) -> None:
    width = min(protected, outputs - 1, inputs - 1)
    space = ProtectedSpace(orthonormal(seed, outputs, width), orthonormal(seed + 1, inputs, width))
    moment_II = spectrum_moment(inputs, condition, seed + 2)
    keys, residual, before = (
        drawn(seed + 3, inputs, facts),
        drawn(seed + 4, outputs, facts),
        drawn(seed + 5, inputs, earlier).float(),
    )
    moment = SecondMoment(moment_II, 2.0, ridge=0)
    cost = 2.0 * exact(moment_II)
    memory = KeyMemory.empty(inputs).with_keys(before)
    gram = exact(before) @ exact(before).T
    for update, wanted in (
        (
            solved(keys, residual, moment, protected=space),
            constrained(keys, residual, cost, space.output_OK, space.input_IK),
        ),
        (
            solved(keys, residual, moment, memory=memory, protected=space),
            constrained(keys, residual, cost + gram, space.output_OK, space.input_IK),
        ),
    ):
        assert relative(update.dense(), wanted) < 1e-12 * max(1.0, condition / 10)
        norm = float(update.dense().norm())
        assert float((space.output_OK.T @ update.dense()).norm()) < 1e-12 * norm
        assert float((update.dense() @ space.input_IK).norm()) < 1e-12 * norm * np.sqrt(condition)


def test_the_constrained_solve_beats_the_filter_at_its_own_aim() -> None:
    """Its objective is never above that of the filtered optimum, which lies in the same space."""
    basis = compute_basis(drawn(0, 20, 30), 8)
    moment_II = spectrum_moment(30, 1e3)
    keys, residual = drawn(1, 30, 5), drawn(2, 20, 5)
    moment = SecondMoment(moment_II, 0.1, ridge=0)

    def objective(update: torch.Tensor) -> float:
        return float((update @ keys - residual).square().sum() + 0.1 * (update @ moment_II * update).sum())

    free = solved(keys, residual, moment).dense()
    left, right = basis.left_DK, basis.right_EK
    filtered = (free - left @ (left.T @ free)) @ (torch.eye(30).double() - right @ right.T)
    inside = solved(keys, residual, moment, protected=ProtectedSpace.of(basis, 8, transposed=False))
    assert objective(inside.dense()) < objective(filtered)
    assert max(leakage(*inside.on_disk(transposed=False), basis, 8)) < 1e-12


def test_transposed_layers_swap_sides() -> None:
    weight_IO = drawn(0, 30, 20)  # as Conv1D stores it
    basis = compute_basis(weight_IO, 6)
    space = ProtectedSpace.of(basis, 4, transposed=True)
    assert space.output_OK.shape == (20, 4)
    assert space.input_IK.shape == (30, 4)
    update = solved(drawn(1, 30, 3), drawn(2, 20, 3), SecondMoment(spectrum_moment(30, 10), 1.0), protected=space)
    left, right = update.on_disk(transposed=True)
    assert torch.equal(left @ right, update.dense().T) or torch.allclose(left @ right, update.dense().T)
    assert max(leakage(left, right, basis, 4)) < 1e-12


# The second moment.


def test_dead_neurons_and_indefinite_storage() -> None:
    moment_II = spectrum_moment(40, 1e3).float()
    moment_II[[3, 17]] = 0
    moment_II[:, [3, 17]] = 0
    keys = drawn(1, 40, 5)
    keys[[3, 17]] = 0
    moment = SecondMoment(moment_II, 100.0)
    update = solved(keys, drawn(2, 20, 5), moment)
    assert float(update.dense()[:, [3, 17]].abs().max()) == 0
    assert moment.applied_ridge == 1e-9
    # Rounding to float32 turned the smallest eigenvalues negative: the ridge grows, and says so.
    broken = spectrum_moment(60, 1e12).float()
    assert float(torch.linalg.eigvalsh(broken.double())[0]) < 0
    moment = SecondMoment(broken, 10.0)
    solution = moment.solve(drawn(3, 60, 4))
    assert moment.applied_ridge > 1e-9
    residual = exact(moment.matrix()) @ exact(solution) - exact(drawn(3, 60, 4))
    assert np.linalg.norm(residual) < 1e-6 * np.linalg.norm(exact(drawn(3, 60, 4)))
    ridge = moment.applied_ridge * np.trace(exact(broken)) / 60
    assert np.allclose(exact(moment.matrix()), 10 * (exact(broken) + ridge * np.eye(60)), rtol=1e-12, atol=0)


def test_a_saved_factor_gives_the_same_solve() -> None:
    moment_II = spectrum_moment(30, 1e4).float()
    first = SecondMoment(moment_II, 7.0)
    again = SecondMoment(moment_II, 9.0, factor_II=first.factor(), applied_ridge=first.applied_ridge)
    vectors = drawn(1, 30, 3)
    assert torch.equal(first.solve(vectors) * 7, again.solve(vectors) * 9) or torch.allclose(
        first.solve(vectors) * 7, again.solve(vectors) * 9, rtol=1e-14
    )
    whitened = first.whiten(vectors)
    assert torch.allclose(whitened.T @ whitened, vectors.T @ first.solve(vectors), rtol=1e-11)
    assert torch.allclose(first.unwhiten(whitened), first.solve(vectors), rtol=1e-9)


def test_moments_that_are_none() -> None:
    with pytest.raises(NumericsError, match="NaN"):
        SecondMoment(torch.tensor([[float("nan")]]), 1.0)
    with pytest.raises(NumericsError, match="not positive semidefinite"):
        SecondMoment(-torch.eye(3) + 2 * torch.ones(3, 3), 1.0).factor()
    with pytest.raises(ValueError, match="square"):
        SecondMoment(torch.ones(2, 3), 1.0)
    with pytest.raises(ValueError, match="positive"):
        SecondMoment(torch.eye(2), 0.0)
    # No text at all: the ridge alone is the cost.
    assert torch.isfinite(SecondMoment(torch.zeros(3, 3), 1.0).solve(torch.ones(3, 1))).all()


@pytest.mark.parametrize("which", ["keys", "residual"])
def test_keys_or_residuals_that_are_not_finite_are_refused(which: str) -> None:
    keys, residual = drawn(0, 5, 2), drawn(1, 4, 2)
    (keys if which == "keys" else residual)[0, 1] = float("inf")
    with pytest.raises(NumericsError, match="this round"):
        LayerProblem(keys_IN=keys, residual_ON=residual)
    with pytest.raises(ValueError, match="as many columns"):
        LayerProblem(keys_IN=drawn(0, 5, 2), residual_ON=drawn(1, 4, 3))


def test_huge_keys_lose_no_accuracy_unnoticed() -> None:
    moment = SecondMoment(spectrum_moment(20, 10), 1e-12)
    keys = drawn(1, 20, 30) * 1e6
    try:
        update = solved(keys, drawn(2, 8, 30), moment)
    except NumericsError as error:
        assert error.hint
    else:
        assert relative(update.dense(), memit(keys, drawn(2, 8, 30), 1e-12 * exact(spectrum_moment(20, 10)))) < 1e-4


# The memory of earlier keys.


def test_a_memory_that_was_built_up_again_continues_the_same() -> None:
    """A version saves the keys of all its rounds side by side; the next edit adds them at once."""
    moment = SecondMoment(spectrum_moment(24, 100), 5.0)
    keys, residual = drawn(1, 24, 4), drawn(2, 10, 4)
    for rounds in (2, 9):  # as keys, and folded into the Gram matrix
        memory = KeyMemory.empty(24)
        added = [drawn(10 + number, 24, 4) for number in range(rounds)]
        for each in added:
            memory = memory.with_keys(each)
        assert (memory.gram_II is not None) == (rounds == 9)
        again = EDITOR.remember(KeyMemory.empty(24), torch.cat(added, dim=1))
        assert isinstance(again, KeyMemory) and again.count == memory.count == 4 * rounds
        ours, theirs = (solved(keys, residual, moment, memory=each).dense() for each in (memory, again))
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)
        assert np.allclose(exact(memory.gram()), sum(exact(each.float()) @ exact(each.float()).T for each in added))


def test_a_round_does_not_change_the_memory_it_was_given() -> None:
    memory = KeyMemory.empty(6).with_keys(drawn(0, 6, 2))
    before = memory.keys_IP.clone()
    memory.with_keys(drawn(1, 6, 3))
    assert torch.equal(memory.keys_IP, before)
    assert memory.count == 2


def test_without_the_setting_memory_is_left_alone() -> None:
    assert EDITOR.begin(EDITOR.settings(), 4, 6) is None
    assert isinstance(EDITOR.begin(EDITOR.settings({"memory": "keys"}), 4, 6), KeyMemory)
    assert EDITOR.remember(None, torch.ones(6, 1)) is None


def test_a_key_that_is_not_finite_is_not_remembered() -> None:
    with pytest.raises(NumericsError, match="key"):
        KeyMemory.empty(3).with_keys(torch.tensor([[float("nan")], [0], [0]]))
