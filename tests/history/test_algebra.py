"""The algebra of patches against rational arithmetic: negation, sums, components, and the bytes that come of them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import workspaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reviver.checkpoint.delta import Delta, DenseDelta, LowRankDelta
from reviver.checkpoint.rounding import rounded_sum
from reviver.history.algebra import Contribution, Label, add_up, compose, key_similarity, negated

ROWS, COLUMNS = 3, 4
# Values whose products leave float64 behind, and plain ones.
floats = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-126, 2.0**-149, 3.0e15, 1 + 2.0**-23, 2.0**-30]),
    st.floats(-4, 4, width=32),
)


def matrices(rows: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.lists(floats, min_size=columns, max_size=columns), min_size=rows, max_size=rows).map(
        lambda values: np.array(values, np.float32).reshape(rows, columns)
    )


@st.composite
def low_ranks(draw: st.DrawFn) -> LowRankDelta:
    rank = draw(st.integers(1, 3))
    return LowRankDelta(draw(matrices(ROWS, rank)), draw(matrices(rank, COLUMNS)))


deltas = st.one_of(low_ranks(), matrices(ROWS, COLUMNS).map(DenseDelta))


def exact(parts: list[Delta]) -> list[list[Fraction]]:
    """Return the sum of deltas in fractions."""
    total = [[Fraction(0)] * COLUMNS for _ in range(ROWS)]
    for delta in parts:
        for row in range(ROWS):
            for column in range(COLUMNS):
                if isinstance(delta, LowRankDelta):
                    for one, other in zip(delta.left[row], delta.right[:, column], strict=True):
                        total[row][column] += Fraction(float(one)) * Fraction(float(other))
                else:
                    total[row][column] += Fraction(float(delta.values[row, column]))
    return total


@given(parts=st.lists(deltas, min_size=1, max_size=4), which=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_taken_back_is_gone_to_the_byte(parts: list[Delta], which: st.DataObject) -> None:
    base = workspaces.bf16(np.array([[1.0, -0.0, 0.0, 3e-39], [1e20, -1e-3, 0.1, 7.0], [2.0, -2.0, 1e30, -5.0]]))
    index = which.draw(st.integers(0, len(parts) - 1))
    dropped = [delta for place, delta in enumerate(parts) if place != index]
    with_both = [*parts, negated(parts[index])]
    assert rounded_sum(base, "BF16", with_both) == rounded_sum(base, "BF16", dropped)
    assert exact(with_both) == exact(dropped)


@given(parts=st.lists(deltas, min_size=1, max_size=4), extra=st.lists(deltas, max_size=2))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_sum_is_exact_or_says_that_it_is_not(parts: list[Delta], extra: list[Delta]) -> None:
    # What cancels is mixed in between.
    mixed = [*extra, *parts, *map(negated, extra)]
    total, is_exact = add_up(mixed)
    found = exact([] if total is None else [total])
    if is_exact:
        assert found == exact(mixed) == exact(parts)
    else:
        assert isinstance(total, DenseDelta) or total is None
        for row, wanted in zip(found, exact(parts), strict=True):
            scale = sum(abs(float(value)) for value in wanted) + 1e25
            np.testing.assert_allclose([float(one) for one in row], [float(one) for one in wanted], atol=1e-6 * scale)


def test_factors_that_outgrow_the_matrix_become_one() -> None:
    wide = [
        LowRankDelta(np.ones((ROWS, 1), np.float32) * (one + 1), np.eye(1, COLUMNS, one % COLUMNS, np.float32))
        for one in range(4)
    ]
    few, is_exact = add_up(wide[:1])
    assert is_exact and few is wide[0]
    many, is_exact = add_up(wide)
    assert isinstance(many, DenseDelta) and not is_exact
    np.testing.assert_array_equal(many.values, np.tile(np.arange(1, 5, dtype=np.float32), (ROWS, 1)))
    assert add_up([*wide, *map(negated, wide)]) == (None, True)
    dense = DenseDelta(many.values)
    assert add_up([dense, negated(dense)]) == (None, True)
    assert add_up([wide[0], dense, negated(wide[0])]) == (dense, True)


ABOUT = [(f"subject {number}", "{} is") for number in range(4)]


def labelled(seed: int, numbers: list[int], sign: int = 1) -> Contribution:
    made = {name: workspaces.low_rank(seed + place, len(numbers)) for place, name in enumerate(workspaces.NAMES)}
    return Contribution(deltas=made, labels=tuple(Label(ABOUT[number], sign) for number in numbers))


def values(contribution: Contribution) -> dict[str, np.ndarray]:
    zero = np.zeros((workspaces.ROWS, workspaces.COLUMNS))
    return {
        name: workspaces.product(contribution.deltas[name]) if name in contribution.deltas else zero
        for name in workspaces.NAMES
    }


def test_components_follow_their_labels() -> None:
    one, other = labelled(10, [0]), labelled(20, [1, 2])
    both = compose([one, other]).whole
    assert both.labels == (*one.labels, *other.labels)  # type: ignore[misc]
    second = other.chosen(lambda label: label == Label(ABOUT[2], 1))
    for name, matrix in values(second).items():
        delta = other.deltas[name]
        assert isinstance(delta, LowRankDelta)
        np.testing.assert_array_equal(matrix, np.outer(delta.left[:, 1].astype(float), delta.right[1].astype(float)))
    without = compose([both, second.negated()]).whole
    assert without.labels == (Label(ABOUT[0], 1), Label(ABOUT[1], 1))
    assert compose([both, both.negated()]).whole == Contribution(deltas={}, labels=())
    assert one.negated().labels == (Label(ABOUT[0], -1, own=False),)
    assert both.holds(ABOUT[2]) and not both.negated().holds(ABOUT[2])


def test_a_component_is_left_out_only_where_it_cancels_in_every_tensor() -> None:
    one = labelled(10, [0])
    first, second = workspaces.NAMES
    half = Contribution(deltas={first: negated(one.deltas[first]), second: one.deltas[second]}, labels=one.labels)
    total = compose([one, half]).whole
    assert total.labels == (Label(ABOUT[0], 1),) * 2
    np.testing.assert_array_equal(values(total)[first], 0)
    np.testing.assert_array_equal(values(total)[second], 2 * values(one)[second])


def test_facts_are_no_longer_apart_beside_a_patch_of_one_piece() -> None:
    one = labelled(10, [0])
    whole = Contribution(deltas={workspaces.FIRST: workspaces.dense(3)}, labels=None)
    total = compose([one, whole])
    assert total.whole.labels is None and total.rounded == (workspaces.FIRST,)
    with pytest.raises(ValueError, match="apart"):
        total.whole.chosen(lambda label: True)
    assert total.whole.deltas[workspaces.SECOND] is one.deltas[workspaces.SECOND]
    expected = workspaces.product(one.deltas[workspaces.FIRST]) + workspaces.product(workspaces.dense(3))
    np.testing.assert_array_equal(workspaces.product(total.whole.deltas[workspaces.FIRST]), expected.astype(np.float32))


def test_the_overlap_of_keys_is_that_of_their_spans() -> None:
    axes = np.eye(6, dtype=np.float32)
    left = np.ones((5, 2), np.float32)
    one = LowRankDelta(left, axes[:2] * 3)
    angle = 0.3
    turned = np.cos(angle) * axes[0] + np.sin(angle) * axes[4]
    other = LowRankDelta(left, np.stack([turned, axes[5]]).astype(np.float32))
    cosines = key_similarity(one, other, transposed=False)
    assert cosines is not None
    np.testing.assert_allclose(cosines, [np.cos(angle), 0], atol=1e-7)
    # Stored input first, the keys are in the other factor.
    flipped = [LowRankDelta(np.ascontiguousarray(one.right.T), left.T.copy()) for one in (one, other)]
    again = key_similarity(flipped[0], flipped[1], transposed=True)
    assert again is not None
    np.testing.assert_allclose(again, cosines)
    assert key_similarity(one, DenseDelta(np.ones((5, 6), np.float32)), transposed=False) is None
