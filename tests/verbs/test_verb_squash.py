"""squash: one patch for several, with the same bytes wherever factors can be put side by side; else what was lost is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import workspaces
from chains import QUICK, SETTINGS, apply_facts, expected, known_family, patches, stored

from reviver.errors import UsageError, WorkspaceError
from reviver.history.chain import known_facts
from reviver.history.workspace import Workspace
from reviver.verbs.diff import diff
from reviver.verbs.merge import merge
from reviver.verbs.revert import revert
from reviver.verbs.squash import SquashReport, squash
from reviver.verbs.verify import verify

Check = Callable[..., dict[str, Any]]


def run(workspace: Workspace, span: str) -> SquashReport:
    return squash(workspace.root, span, settings=SETTINGS, choice=QUICK)


def answers(workspace: Workspace, name: str = "head") -> dict[str, str]:
    return {key[0]: known.fact.target_new for key, known in known_facts(workspace.chain(name)).items()}


def assert_same(workspace: Workspace, one: str, other: str) -> None:
    """Assert that two versions are the same model and hold the same facts."""
    report = diff(workspace.root, one, other)
    assert report.files == () and answers(workspace, one) == answers(workspace, other)
    for tensor in workspaces.NAMES:
        assert stored(workspace, one, tensor) == stored(workspace, other, tensor)


@pytest.fixture
def four(workspace: Workspace) -> Workspace:
    """Four versions of one fact each; v3 changes what v2 says of Rome."""
    known_family(workspace)
    for number, (subject, target) in enumerate(
        (("Oslo", "Peru"), ("Rome", "Chile"), ("Rome", "Spain"), ("Bern", "Japan")), 1
    ):
        apply_facts(workspace, [workspaces.make_fact(subject, target)], seed=number)
    return workspace


def test_three_become_one(four: Workspace) -> None:
    report = run(four, "v1..v4")
    assert (report.version, report.parent, report.squashed) == ("v5", "v1", ("v2", "v3", "v4"))
    assert report.exact and report.losses == ()
    assert_same(four, "v4", "v5")
    version = four.version("v5")
    assert [(fact.subject, fact.target_new) for fact in version.facts()] == [("Rome", "Spain"), ("Bern", "Japan")]
    assert [tensor.patch_rank for tensor in version.manifest.tensors] == [3, 3]
    assert version.manifest.editor.settings["from"] == four.version("v1").id
    assert version.manifest.editor.settings["to"] == four.version("v4").id
    assert verify(four.root).ok
    # Its facts are still apart: Rome's two components go together.
    revert(four.root, "v5", settings=SETTINGS, facts=[version.facts()[0].id], choice=QUICK)
    for tensor in workspaces.NAMES:
        assert stored(four, "v6", tensor) == expected(four, tensor, patches(four, ["v1", "v4"], tensor))
    assert answers(four) == {"Oslo": "Peru", "Bern": "Japan"}


def test_from_the_base_and_up_to_the_head(four: Workspace) -> None:
    assert run(four, "..v3").squashed == ("v1", "v2", "v3")
    assert_same(four, "v3", "v5")
    with four.lock("test"):
        four.move_head("test", "v4")
    assert run(four, "v2..").squashed == ("v3", "v4")
    assert_same(four, "v4", "v6")


def test_what_was_taken_back_leaves_no_trace(four: Workspace) -> None:
    revert(four.root, "v3", settings=SETTINGS, choice=QUICK)
    revert(four.root, "v1", settings=SETTINGS, choice=QUICK)
    report = run(four, "v1..v6")
    assert_same(four, "v6", report.version)
    # v3 is gone without a component; v1, which lies below, is taken back by the squashed version.
    assert [tensor.patch_rank for tensor in four.version("v7").manifest.tensors] == [3, 3]
    assert answers(four) == {"Rome": "Chile", "Bern": "Japan"}
    revert(four.root, "v7", settings=SETTINGS, choice=QUICK)
    assert answers(four) == {"Oslo": "Peru"}
    for tensor in workspaces.NAMES:
        assert stored(four, "v8", tensor) == stored(four, "v1", tensor)
    assert verify(four.root).ok


def test_a_squashed_revert_of_a_revert(four: Workspace) -> None:
    revert(four.root, "v2", settings=SETTINGS, choice=QUICK)
    revert(four.root, "v5", settings=SETTINGS, choice=QUICK)
    apply_facts(four, [workspaces.make_fact("Cork", "Malta")], seed=9)
    for span in ("v3..v7", "v4..v7", "v5..v7"):
        report = run(four, span)
        assert_same(four, "v7", report.version)
        with four.lock("test"):
            four.move_head("test", "v7")
    assert verify(four.root).ok


def test_a_squashed_branch_still_merges(four: Workspace) -> None:
    apply_facts(four, [workspaces.make_fact("Cork", "Malta")], parent="v1", seed=9)
    run(four, "v1..v4")
    plain = merge(four.root, "v5", "v4", settings=SETTINGS, choice=QUICK)
    squashed = merge(four.root, "v5", "v6", settings=SETTINGS, choice=QUICK)
    assert_same(four, plain.version, squashed.version)
    assert verify(four.root).ok


def test_factors_that_outgrow_the_tensor_are_fitted_to_the_bytes(workspace: Workspace) -> None:
    facts = [[workspaces.make_fact(f"{letter}{number}", "Peru") for letter in "ABC"] for number in range(4)]
    for number, some in enumerate(facts):
        apply_facts(workspace, some, seed=number)
    report = run(workspace, "..v4")
    assert [loss.name for loss in report.losses] == sorted(workspaces.NAMES)
    assert report.exact and [loss.entries for loss in report.losses] == [0, 0]
    assert all(loss.total == workspaces.ROWS * workspaces.COLUMNS for loss in report.losses)
    assert_same(workspace, "v4", "v5")
    assert [tensor.patch_rank for tensor in workspace.version("v5").manifest.tensors] == [None, None]
    assert verify(workspace.root).ok
    with pytest.raises(WorkspaceError, match="does not keep its facts apart"):
        revert(workspace.root, "v5", settings=SETTINGS, facts=[facts[0][0].id], choice=QUICK)


def test_a_loss_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from reviver.checkpoint import fitting

    for number in range(2):
        workspaces.add_version(
            workspace,
            [workspaces.make_fact(f"A{number}", "Peru")],
            {workspaces.FIRST: workspaces.dense(number), workspaces.SECOND: workspaces.dense(5 + number)},
        )
    # A fit that stops at once, from a start that is wrong in one entry.
    monkeypatch.setattr(fitting, "_NUDGES", 0)
    original = fitting.Goal.rounded

    def spoiled(goal: fitting.Goal, *more: Any) -> np.ndarray:
        bits = original(goal, *more).copy()
        bits[0, 0] ^= 1
        return bits

    monkeypatch.setattr(fitting.Goal, "rounded", spoiled)
    report = run(workspace, "..v2")
    assert not report.exact
    for loss in report.losses:
        value = workspaces.values_of(stored(workspace, "v2", loss.name))[0]
        assert loss.entries == 1 and 0 < loss.largest <= abs(value) * 2**-6


def test_what_cannot_be_squashed(four: Workspace) -> None:
    apply_facts(four, [workspaces.make_fact("Cork", "Malta")], parent="v1", seed=9)
    for span, error, text in (
        ("v2", UsageError, "does not name two versions"),
        ("v2...v4", UsageError, "does not name two versions"),
        ("v2..v5", WorkspaceError, "v5 does not stand on v2"),
        ("v4..v4", WorkspaceError, "there is nothing between v4 and v4"),
        ("v3..v4", WorkspaceError, "there is only v4 between v3 and v4"),
        ("v4..v2", WorkspaceError, "v2 does not stand on v4"),
    ):
        with pytest.raises(error, match=text):
            run(four, span)
    revert(four.root, "v5", settings=SETTINGS, choice=QUICK)
    with pytest.raises(WorkspaceError, match="v6 is v1 to the byte"):
        run(four, "v1..v6")


def test_on_the_command_line(four: Workspace, check: Check) -> None:
    fields = check(
        four,
        "squash",
        "v1..v4",
        "--no-measure",
        human=["squashed v2, v3, v4: the same bytes as v4", "v5", "on v1: 3 facts in force"],
        quiet="v6",
        stderr=["hint: `reviver diff v4 v5`"],
    )
    assert fields["squashed"] == ["v2", "v3", "v4"] and fields["exact"] is True
