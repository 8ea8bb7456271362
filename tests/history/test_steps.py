"""Undo and redo over the operation log, against an editor's two stacks."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from reviver.history.operations import Operation
from reviver.history.steps import REDO, REDOES, UNDO, UNDOES, read_steps


def operation(number: int, verb: str, before: str, after: str, **detail: object) -> Operation:
    return Operation(
        number=number,
        verb=verb,
        time="2026-01-31T12:00:00Z",
        head_before=before,
        head_after=after,
        version=after if verb == "apply" else None,
        detail=detail,
    )


@settings(max_examples=200, deadline=None)
@given(actions=st.lists(st.sampled_from(["apply", "undo", "undo", "redo", "redo", "push"]), max_size=40))
def test_the_log_is_an_editors_undo_and_redo(actions: list[str]) -> None:
    """The model: a list of heads and a place in it; new work cuts off what lies beyond the place."""
    heads, place = ["v0"], 0
    log: list[Operation] = []
    for number, action in enumerate(actions, start=1):
        head = heads[place]
        steps = read_steps(log)
        back, forward = steps.next_undo(head), steps.next_redo(head)
        assert (None if back is None else back.before) == (heads[place - 1] if place else None)
        assert (None if forward is None else forward.after) == (heads[place + 1] if place + 1 < len(heads) else None)
        if action == "apply":
            new = f"v{number}"
            log.append(operation(number, "apply", head, new))
            heads, place = [*heads[: place + 1], new], place + 1
        elif action == "push":
            log.append(operation(number, "push", head, head))
        elif action == "undo" and back is not None:
            log.append(operation(number, UNDO, head, back.before, **{UNDOES: back.number}))
            place -= 1
        elif action == "redo" and forward is not None:
            log.append(operation(number, REDO, head, forward.after, **{REDOES: forward.number}))
            place += 1


def test_an_undo_beyond_the_log_can_be_redone_and_undone_again() -> None:
    log = [operation(1, UNDO, "v3", "v1")]
    step = read_steps(log).next_redo("v1")
    assert step is not None and (step.after, step.time) == ("v3", None)
    log.append(operation(2, REDO, "v1", "v3", **{REDOES: step.number}))
    assert read_steps(log).next_redo("v3") is None
    back = read_steps(log).next_undo("v3")
    assert back is not None and back.before == "v1"


def test_a_head_that_the_log_does_not_explain_has_no_steps() -> None:
    log = [operation(1, "apply", "v0", "v1"), operation(2, UNDO, "v1", "v0", **{UNDOES: 1})]
    assert read_steps(log).next_redo("v7") is None
    assert read_steps(log[:1]).next_undo("v7") is None


def test_details_of_any_type_are_no_crash() -> None:
    for value in ([], {}, "1", None, 1.0):
        log = [operation(1, "apply", "v0", "v1"), operation(2, UNDO, "v1", "v0", **{UNDOES: value})]
        assert read_steps([*log, operation(3, REDO, "v0", "v1", **{REDOES: value})]) is not None
