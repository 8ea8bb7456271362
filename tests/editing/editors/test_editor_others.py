"""RECT, PRUNE, AlphaEdit, NSE and UltraEdit against their papers' formulae with explicit inverses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import Matrix, alphaedit, constrained, drawn, exact, memit, orthonormal, relative, spectrum_moment
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from reviver.editing.editors import (
    DenseUpdate,
    FactoredUpdate,
    LayerProblem,
    Memory,
    ProtectedSpace,
    SecondMoment,
    get_editor,
)
from reviver.editing.editors.memory import KeyMemory
from reviver.editing.editors.nse import facts_to_repeat, selected_neurons
from reviver.editing.editors.prune import TotalMemory, held_back
from reviver.editing.editors.rect import most_changed
from reviver.editing.editors.ultraedit import MomentsMemory, RunningMoments
from reviver.errors import ManifestError, NumericsError

O, I, N = 14, 22, 5  # noqa: E741 The letters are the axes' names everywhere in this package.


def problem(seed: int, *, facts: int = N, condition: float = 50.0, scale: float = 1.0, **more: object) -> LayerProblem:
    return LayerProblem(
        keys_IN=drawn(seed, I, facts),
        residual_ON=scale * drawn(seed + 1, O, facts),
        second_moment=SecondMoment(spectrum_moment(I, condition), 2.0, ridge=0),
        **more,  # type: ignore[arg-type]
    )


COST = 2.0 * exact(spectrum_moment(I, 50.0))


def space(width: int = 4) -> ProtectedSpace:
    return ProtectedSpace(orthonormal(90, O, width), orthonormal(91, I, width))


# RECT.


@settings(max_examples=40, deadline=None)
@given(keep=st.floats(0, 1), seed=st.integers(0, 2**16), zeros=st.integers(0, 20))
def test_rect_keeps_the_entries_of_largest_relative_change(keep: float, seed: int, zeros: int) -> None:
    weight = drawn(seed + 9, O, I)
    weight.view(-1)[torch.randperm(O * I, generator=torch.Generator().manual_seed(seed))[:zeros]] = 0
    given_problem = problem(seed, weight_OI=weight)
    editor = get_editor("rect")
    update = editor.solve(given_problem, editor.settings({"keep": keep})).update
    assert isinstance(update, DenseUpdate)
    plain = memit(given_problem.keys_IN, given_problem.residual_ON, COST)
    with np.errstate(divide="ignore"):
        order = np.argsort(-np.abs(plain / exact(weight)), axis=None, kind="stable")
    wanted = np.zeros_like(plain)
    # Zeros of the weight tie at infinity and are kept together.
    kept = round(keep * O * I)
    kept = max(kept, zeros) if kept else 0
    wanted.flat[order[:kept]] = plain.flat[order[:kept]]
    assert np.allclose(exact(update.dense()), wanted, atol=1e-12)


def test_rect_leaves_a_zero_change_of_a_zero_weight_alone() -> None:
    delta, weight = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 0.0, 9.0]])
    assert most_changed(delta, weight, 0.5).tolist() == [[0, 1, 2, 0]]
    assert most_changed(delta, weight, 1.0).tolist() == delta.tolist()
    assert most_changed(delta, weight, 0.0).tolist() == [[0, 0, 0, 0]]


# PRUNE.


def pruned(total: Matrix, largest: float) -> Matrix:
    left, values, right = np.linalg.svd(total, full_matrices=False)
    large = values >= largest
    values[large] = np.minimum(np.log(values[large]) - np.log(largest) + largest, values[large])
    return left * values @ right


@pytest.mark.parametrize("base_scale", [0.05, 1.0, 4.0, 1000.0])
@pytest.mark.parametrize("reload", [False, True])
def test_prune_over_many_rounds(base_scale: float, reload: bool) -> None:
    """The patches add up to the pruned sum of the unpruned updates: while it is kept as factors, and once it is dense."""
    base = drawn(77, O, I) * base_scale
    largest = float(np.linalg.svd(exact(base), compute_uv=False)[0])
    editor = get_editor("prune")
    memory: Memory | None = editor.begin(editor.settings(), O, I)
    assert memory is None
    total, patches = np.zeros((O, I)), np.zeros((O, I))
    for number in range(6):
        given_problem = problem(100 + 2 * number, facts=2, scale=3.0, base_weight_OI=base, memory=memory)
        solution = editor.solve(given_problem, editor.settings())
        memory = solution.memory
        assert isinstance(memory, TotalMemory)
        if reload:
            assert editor.load_memory is not None
            memory = editor.load_memory(memory.tensors())
        total += memit(given_problem.keys_IN, given_problem.residual_ON, COST)
        patches += exact(solution.update.dense())
        assert np.linalg.norm(patches - pruned(total, largest)) < 2e-6 * np.linalg.norm(total)
    assert isinstance(memory, TotalMemory)
    assert memory.values_OI is not None
    assert memory.largest == pytest.approx(largest, rel=1e-13)


def test_prune_never_raises_a_singular_value() -> None:
    values = torch.linspace(0.01, 5, 200, dtype=torch.float64)
    for ceiling in (0.02, 0.3, 1.0, 3.0):
        after = held_back(values, ceiling)
        assert bool((after <= values).all())
        assert torch.equal(after[values < ceiling], values[values < ceiling])
    assert float(held_back(torch.tensor([np.e * 2.0]), 2.0)) == pytest.approx(3.0)


def test_prune_refuses_a_damaged_memory() -> None:
    good = TotalMemory.start(drawn(0, O, I)).tensors()
    assert TotalMemory.from_tensors(good).largest > 0
    for name, bad in (
        ("left", torch.ones(3, 3)),
        ("largest", torch.tensor([float("nan")])),
        ("values", torch.ones(2, 2)),
    ):
        with pytest.raises(ManifestError, match="damaged"):
            TotalMemory.from_tensors({**good, name: bad})
    with pytest.raises(ManifestError, match="damaged"):
        TotalMemory.from_tensors({})


# AlphaEdit.


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    earlier=st.integers(0, 60),
    l2=st.floats(0.1, 100),
    limit=st.sampled_from([{"threshold": 0.3}, {"threshold": 0.05}, {"share": 0.4}, {"share": 0.9}]),
)
def test_alphaedit_equals_the_textbook(seed: int, earlier: int, l2: float, limit: dict[str, float]) -> None:
    moment = spectrum_moment(I, 50.0)
    eigenvalues, vectors = np.linalg.eigh(exact(moment))
    if "threshold" in limit:
        small = eigenvalues < limit["threshold"]
    else:
        small = np.cumsum(eigenvalues) <= limit["share"] * eigenvalues.sum()
    projector = vectors[:, small] @ vectors[:, small].T
    before = drawn(seed + 5, I, earlier).float()
    editor = get_editor("alphaedit")
    memory = editor.begin(editor.settings(), O, I)
    chosen = editor.settings({"l2": l2, **limit})
    for part in before.split(11, dim=1):
        memory = editor.remember(memory, part)
        memory = editor.solve(problem(seed, memory=memory), chosen).memory
    given_problem = problem(seed, memory=memory)
    update = editor.solve(given_problem, chosen).update
    assert isinstance(update, FactoredUpdate)
    wanted = alphaedit(given_problem.keys_IN, given_problem.residual_ON, projector, l2, before)
    assert relative(update.dense(), wanted) < 1e-9
    # Whatever ordinary text uses keeps its output.
    assert np.linalg.norm(exact(update.dense()) @ vectors[:, ~small]) < 1e-12 * np.linalg.norm(wanted)


def test_alphaedit_inside_the_safe_subspace() -> None:
    editor, protected = get_editor("alphaedit"), space()
    chosen = editor.settings({"threshold": 0.3, "l2": 2.0})
    eigenvalues, vectors = np.linalg.eigh(exact(spectrum_moment(I, 50.0)))
    null = vectors[:, eigenvalues < 0.3]
    # Inside the null space and orthogonal to V: a basis of both, found by elimination.
    inside = null @ np.linalg.svd((null.T @ exact(protected.input_IK)).T)[2][4:].T
    given_problem = problem(3, protected=protected)
    wanted = alphaedit(given_problem.keys_IN, given_problem.residual_ON, inside @ inside.T, 2.0, torch.empty(I, 0))
    output = exact(protected.output_OK)
    wanted = wanted - output @ (output.T @ wanted)
    assert relative(editor.solve(given_problem, chosen).update.dense(), wanted) < 1e-11


def test_alphaedit_without_room_is_an_error() -> None:
    editor = get_editor("alphaedit")
    with pytest.raises(NumericsError, match="no room") as caught:
        editor.solve(problem(0), editor.settings({"threshold": 1e-6}))
    assert "threshold" in str(caught.value.hint)


# NSE.


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), earlier=st.integers(0, 60), share=st.floats(0, 1))
def test_nse_equals_the_textbook(seed: int, earlier: int, share: float) -> None:
    editor = get_editor("nse")
    before = drawn(seed + 5, I, earlier).float()
    memory = editor.begin(editor.settings(), O, I)
    for part in before.split(9, dim=1):
        memory = editor.remember(memory, part)
    given_problem = problem(seed, memory=memory)
    update = editor.solve(given_problem, editor.settings({"share": share})).update
    drive = np.abs(exact(given_problem.keys_IN)).sum(1)
    neurons: list[int] = []
    for neuron in np.argsort(-drive, kind="stable"):
        neurons.append(int(neuron))
        if drive[neurons].sum() >= share * drive.sum() * (1 - 1e-12):
            break
    neurons.sort()
    gram = exact(before) @ exact(before).T
    wanted = np.zeros((O, I))
    picked = np.ix_(neurons, neurons)
    wanted[:, neurons] = memit(given_problem.keys_IN[neurons], given_problem.residual_ON, (COST + gram)[picked])
    assert relative(update.dense(), wanted) < 1e-9
    rest = [neuron for neuron in range(I) if neuron not in neurons]
    assert not update.dense()[:, rest].any()


def test_nse_on_all_neurons_is_memit_with_memory() -> None:
    given_problem = problem(4, memory=KeyMemory.empty(I).with_keys(drawn(9, I, 6)))
    ours, theirs = get_editor("nse"), get_editor("memit")
    assert torch.allclose(
        ours.solve(given_problem, ours.settings({"share": 1.0})).update.dense(),
        theirs.solve(given_problem, theirs.settings({"memory": "keys"})).update.dense(),
        atol=1e-12,
    )


class _OneDevice(TorchDispatchMode):
    """Refuses, as torch does and its fake tensors do not, to look up values by places that lie on another device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if str(function).startswith("aten.index."):
            for places in arguments[1]:
                assert places is None or places.device in (torch.device("cpu"), arguments[0].device)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("summed", [False, True])
def test_keys_in_main_memory_are_found_by_neurons_of_a_gpu(summed: bool) -> None:
    with FakeTensorMode(), _OneDevice():
        gram_II = torch.empty(I, I, dtype=torch.float64) if summed else None
        memory = KeyMemory(torch.empty(I, 3), gram_II)
        gram_SS = memory.gram_at(torch.empty(4, dtype=torch.long, device="cuda"))
    assert gram_SS.shape == (4, 4) and gram_SS.dtype == torch.float64


def test_nse_inside_the_safe_subspace() -> None:
    editor, protected = get_editor("nse"), space()
    given_problem = problem(6, protected=protected)
    neurons = selected_neurons(given_problem.keys_IN, 0.7)
    update = editor.solve(given_problem, editor.settings({"share": 0.7})).update.dense()
    rows = protected.input_IK[neurons]
    cost = COST[np.ix_(neurons.numpy(), neurons.numpy())]
    orthonormal_rows = torch.linalg.qr(rows).Q
    wanted = np.zeros((O, I))
    wanted[:, neurons.numpy()] = constrained(
        given_problem.keys_IN[neurons], given_problem.residual_ON, cost, protected.output_OK, orthonormal_rows
    )
    assert relative(update, wanted) < 1e-11
    assert float((update @ protected.input_IK).norm()) < 1e-12 * float(update.norm())


def test_nse_repeats_facts_between_its_limits() -> None:
    chosen = get_editor("nse").settings({"alpha": 2.5, "upper": 50})
    assert facts_to_repeat(torch.tensor([0.0, 2.5, 3.0, 49.0, 50.0, 99.0]), chosen).tolist() == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert get_editor("nse").targets_on == "base"


# UltraEdit.


@pytest.mark.parametrize("reload", [False, True])
def test_ultraedit_equals_the_textbook(reload: bool) -> None:
    editor = get_editor("ultraedit")
    assert (editor.signal, editor.needs_second_moment) == ("gradients", False)
    chosen = editor.settings({"rate": 0.01})
    memory = editor.begin(chosen, O, I)
    all_keys, all_gradients = np.zeros((0, I)), np.zeros((0, O))
    for number, tokens in enumerate((7, 1, 40)):
        keys, gradients = drawn(10 + number, I, tokens) + 3, drawn(20 + number, O, tokens) * 1e-3
        solution = editor.solve(LayerProblem(keys_IN=keys, residual_ON=gradients, memory=memory), chosen)
        memory = solution.memory
        assert isinstance(memory, MomentsMemory)
        if reload:
            assert editor.load_memory is not None
            memory = editor.load_memory(memory.tensors())
        k, g = exact(keys).T, exact(gradients).T
        all_keys, all_gradients = np.concatenate([all_keys, k]), np.concatenate([all_gradients, g])
        k_hat = (k - all_keys.mean(0)) / (all_keys.std(0) + 1e-8)
        g_hat = (g - all_gradients.mean(0)) / (all_gradients.std(0) + 1e-8)
        v = -0.01 * np.sum(k_hat**2, axis=1, keepdims=True) * g_hat
        wanted = (k.T @ np.linalg.inv(k @ k.T + np.eye(tokens)) @ v).T
        assert relative(solution.update.dense(), wanted) < 1e-9


def test_ultraedit_inside_the_safe_subspace() -> None:
    editor, protected = get_editor("ultraedit"), space()
    update = editor.solve(
        LayerProblem(keys_IN=drawn(0, I, 6), residual_ON=drawn(1, O, 6), protected=protected),
        editor.settings({"rate": 1}),
    ).update.dense()
    assert float(update.norm()) > 0
    assert float((update @ protected.input_IK).norm()) < 1e-12 * float(update.norm())
    assert float((protected.output_OK.T @ update).norm()) < 1e-12 * float(update.norm())


def test_running_moments_lose_no_digits() -> None:
    values = drawn(0, 3, 1000) + 1e6
    moments = RunningMoments(0, torch.zeros(3).double(), torch.zeros(3).double())
    for part in values.split(17, dim=1):
        moments = moments.updated(part)
    assert moments.updated(values[:, :0]) is moments
    assert np.allclose(moments.mean_F.numpy(), exact(values).mean(1), rtol=1e-14)
    assert np.allclose(moments.squares_F.numpy() / 1000, exact(values).var(1), rtol=1e-7)


def test_ultraedit_refuses_a_damaged_memory() -> None:
    good = MomentsMemory.empty(O, I).tensors()
    for name, bad in (
        ("count", torch.tensor([-1])),
        ("key_mean", torch.ones(I + 1)),
        ("key_mean", torch.full((I,), float("inf"))),
    ):
        with pytest.raises(ManifestError, match="damaged"):
            MomentsMemory.from_tensors({**good, name: bad})
    with pytest.raises(ManifestError, match="damaged"):
        MomentsMemory.from_tensors({})


# What all of them promise.


@pytest.mark.parametrize("name", ["memit", "rect", "prune", "alphaedit", "nse", "ultraedit"])
def test_solving_is_pure(name: str) -> None:
    """The same problem gives the same update, and the tensors of the problem are left as they were."""
    editor = get_editor(name)
    chosen = editor.settings({"threshold": 0.3} if name == "alphaedit" else {})
    weight = drawn(50, O, I)
    given_problem = problem(1, base_weight_OI=weight, weight_OI=weight, memory=editor.begin(chosen, O, I))
    copies = given_problem.keys_IN.clone(), given_problem.residual_ON.clone(), weight.clone()
    first, second = (editor.solve(given_problem, chosen).update.dense() for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (O, I)
    assert first.dtype == torch.float64
    assert torch.equal(copies[0], given_problem.keys_IN)
    assert torch.equal(copies[1], given_problem.residual_ON)
    assert torch.equal(copies[2], weight)
