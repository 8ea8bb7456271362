"""A delta that leads from one tensor's bytes to another's, checked by fractions."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_samples import STORAGE, expected_matrix, sample_delta

from reviver.checkpoint.delta import DenseDelta, LowRankDelta
from reviver.checkpoint.fitting import Goal, delta_to
from reviver.checkpoint.floats import encode

DTYPES = ("BF16", "F16", "F32")
ROWS, COLUMNS = 12, 20


def goal_of(base: np.ndarray, target: np.ndarray, dtype: str, deltas: tuple[LowRankDelta, ...] = ()) -> Goal:
    return Goal(base=encode(base, dtype), target=encode(target, dtype), dtype=dtype, shape=base.shape, deltas=deltas)


def assert_reached(goal: Goal, delta: DenseDelta | LowRankDelta) -> None:
    bits = np.frombuffer(goal.base, STORAGE[goal.dtype]).reshape(goal.shape)
    wanted = np.frombuffer(goal.target, STORAGE[goal.dtype]).reshape(goal.shape)
    np.testing.assert_array_equal(expected_matrix(bits, [*goal.deltas, delta], goal.dtype), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chained", [False, True])
def test_every_entry_is_reached(dtype: str, chained: bool) -> None:
    random = np.random.default_rng(1)
    base = 0.02 * random.standard_normal((ROWS, COLUMNS))
    target = base + 0.02 * random.standard_normal((ROWS, COLUMNS))
    # Entries that nearly vanish, or only turn their sign, want more digits than the difference has.
    target[:, ::5] = -base[:, ::5] * (1e-3 if dtype == "F16" else 1e-5)
    target[0, 0] = 0
    deltas = (LowRankDelta(*sample_delta(ROWS, COLUMNS, 2)),) if chained else ()
    goal = goal_of(base, target, dtype, deltas)
    delta, missed = delta_to(goal)
    assert missed == 0 and delta is not None
    assert_reached(goal, delta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_few_rows_or_columns_become_factors(dtype: str, axis: int) -> None:
    random = np.random.default_rng(2)
    base = random.standard_normal((ROWS, COLUMNS))
    target = base.copy()
    np.moveaxis(target, axis, 0)[[2, 5]] *= 1.25
    goal = goal_of(base, target, dtype)
    delta, missed = delta_to(goal)
    assert isinstance(delta, LowRankDelta) and missed == 0 and delta.rank <= (4 if dtype == "F32" else 2)
    assert_reached(goal, delta)


def test_nothing_to_do_and_nothing_that_can_be_done() -> None:
    base = np.array([[1.0, 0.0, -2.0]])
    assert delta_to(goal_of(base, base, "BF16")) == (None, 0)
    delta, missed = delta_to(goal_of(base, np.array([[1.0, -0.0, -2.0]]), "BF16"))
    assert delta is None and missed == 1
    delta, missed = delta_to(goal_of(base, np.array([[-0.0, 0.0, -4.0]]), "BF16"))
    assert delta is not None and missed == 1
