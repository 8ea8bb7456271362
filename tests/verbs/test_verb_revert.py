"""revert: a patch, or a fact, out of the middle of a chain; the bytes are those of the base and all others, in fractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import workspaces
from chains import QUICK, SETTINGS, apply_facts, component, expected, patches, stored

from reviver.errors import UsageError, VersionNotFoundError, WorkspaceError
from reviver.history.chain import known_facts
from reviver.history.workspace import Workspace
from reviver.verbs.diff import diff
from reviver.verbs.log import log
from reviver.verbs.revert import RevertReport, revert
from reviver.verbs.show import show
from reviver.verbs.verify import verify

Check = Callable[..., dict[str, Any]]


def run(workspace: Workspace, name: str, *facts: str) -> RevertReport:
    return revert(workspace.root, name, settings=SETTINGS, facts=facts, choice=QUICK)


def answers(workspace: Workspace, name: str = "head") -> dict[str, str]:
    return {key[0]: known.fact.target_new for key, known in known_facts(workspace.chain(name)).items()}


@pytest.fixture
def ten(workspace: Workspace) -> Workspace:
    """Ten versions in a row, each with two facts; v7 answers one of v3's facts otherwise."""
    for number in range(1, 11):
        subjects = [f"A{number}", "A3" if number == 7 else f"B{number}"]
        apply_facts(workspace, [workspaces.make_fact(one, f"T{number}") for one in subjects], seed=number)
    return workspace


def test_the_middle_of_ten(ten: Workspace) -> None:
    report = run(ten, "v5")
    assert (report.version, report.parent, report.reverted) == ("v11", "v10", "v5")
    assert (report.facts_in_force, report.facts_dropped) == (17, 2)
    others = [f"v{number}" for number in range(1, 11) if number != 5]
    for tensor in workspaces.NAMES:
        assert stored(ten, "v11", tensor) == expected(ten, tensor, patches(ten, others, tensor))
    assert "A5" not in answers(ten) and len(answers(ten)) == 17
    assert verify(ten.root).ok
    manifest = ten.version("v11").manifest
    assert manifest.facts.count == 0 and manifest.filter == ten.version("v5").manifest.filter
    assert {tensor.protected_rank for tensor in manifest.tensors} == {2}
    dropped = diff(ten.root, "v10", "v11").facts_dropped
    assert sorted(change.subject for change in dropped) == ["A5", "B5"]


def test_a_later_answer_stays_and_an_earlier_one_returns(ten: Workspace) -> None:
    assert answers(ten)["A3"] == "T7"
    run(ten, "v7")
    assert answers(ten)["A3"] == "T3"
    run(ten, "v3")
    assert "A3" not in answers(ten)
    # Both are had back in the order in which they were set, whatever the order of the reverts.
    run(ten, "v11")
    assert answers(ten)["A3"] == "T7"
    run(ten, "v12")
    assert answers(ten) == answers(ten, "v10")
    for tensor in workspaces.NAMES:
        assert stored(ten, ten.head(), tensor) == stored(ten, "v10", tensor)
    assert verify(ten.root).ok


def test_one_fact(ten: Workspace) -> None:
    fact = ten.version("v5").facts()[1]
    report = run(ten, "v5", fact.id)
    assert report.facts == (fact.id,) and report.facts_dropped == 1
    assert answers(ten)["A5"] == "T5" and "B5" not in answers(ten)
    for tensor in workspaces.NAMES:
        (own,) = patches(ten, ["v5"], tensor)
        others = patches(ten, [f"v{number}" for number in range(1, 11) if number != 5], tensor)
        assert stored(ten, "v11", tensor) == expected(ten, tensor, [*others, component(own, 0)])
    with pytest.raises(WorkspaceError, match="taken back already"):
        run(ten, "v5", fact.id)
    # The rest of the version goes, and nothing is taken back twice.
    run(ten, "v5")
    assert "A5" not in answers(ten)
    for tensor in workspaces.NAMES:
        others = patches(ten, [f"v{number}" for number in range(1, 11) if number != 5], tensor)
        assert stored(ten, "v12", tensor) == expected(ten, tensor, others)
    with pytest.raises(WorkspaceError, match="v5 is taken back already") as caught:
        run(ten, "v5")
    assert caught.value.hint is not None and "v12" in caught.value.hint
    # Taking the second revert back brings back what it took, and the single fact stays out.
    run(ten, "v12")
    assert answers(ten)["A5"] == "T5" and "B5" not in answers(ten)
    run(ten, "v11")
    assert answers(ten) == answers(ten, "v10")
    for tensor in workspaces.NAMES:
        assert stored(ten, "v14", tensor) == stored(ten, "v10", tensor)
    assert verify(ten.root).ok


def test_what_another_revert_has_done_is_not_done_again(ten: Workspace) -> None:
    run(ten, "v5")
    run(ten, "v11")
    run(ten, "v5")
    # v12 brought v5 back and v13 took it again, so that nothing of v12 is left.
    with pytest.raises(WorkspaceError, match="nothing of v12 is left to take back"):
        run(ten, "v12")
    run(ten, "v13")
    assert answers(ten) == answers(ten, "v10")
    run(ten, "v12")
    for tensor in workspaces.NAMES:
        assert stored(ten, "v14", tensor) == stored(ten, "v10", tensor)
        assert stored(ten, "v15", tensor) == stored(ten, "v11", tensor)
    assert verify(ten.root).ok


def test_a_dense_patch_goes_as_a_whole(workspace: Workspace) -> None:
    facts = [workspaces.make_fact("Rome", "Chile"), workspaces.make_fact("Oslo", "Peru")]
    workspaces.add_version(workspace, facts, {workspaces.FIRST: workspaces.dense(1)})
    apply_facts(workspace, [workspaces.make_fact("Lima", "Spain")], seed=2)
    with pytest.raises(WorkspaceError, match=r"v1, made by `memit`, does not keep its facts apart") as caught:
        run(workspace, "v1", facts[0].id)
    assert caught.value.hint is not None and "reviver revert v1" in caught.value.hint
    assert workspace.head() == "v2"
    # All facts of a version are the version.
    report = run(workspace, "v1", *(fact.id for fact in facts))
    assert report.facts == () and report.facts_dropped == 2
    rest = patches(workspace, ["v2"], workspaces.FIRST)
    assert stored(workspace, "v3", workspaces.FIRST) == expected(workspace, workspaces.FIRST, rest)
    assert verify(workspace.root).ok


def test_what_cannot_be_reverted(chained: Workspace) -> None:
    before = workspaces.snapshot(chained.edits), chained.head()
    for name, error, text in (
        ("v2", WorkspaceError, "the head, v3, does not stand on v2"),
        ("base", UsageError, "the base has no patch"),
        ("v9", VersionNotFoundError, "does not exist"),
    ):
        with pytest.raises(error, match=text):
            run(chained, name)
    with pytest.raises(WorkspaceError, match=r"v1 has no fact `nonsense\\x1b`"):
        run(chained, "v1", "nonsense\x1b")
    assert (workspaces.snapshot(chained.edits), chained.head()) == before


def test_readers_of_manifests_cope(ten: Workspace) -> None:
    run(ten, "v5")
    assert log(ten.root).entries[0].editor == "revert"
    shown = show(ten.root)
    assert shown.facts == () and shown.editor is not None and shown.editor.settings["reverts"] == ten.version("v5").id
    (change,) = [tensor for tensor in diff(ten.root, "v4", "v11").tensors if tensor.name == workspaces.FIRST]
    deltas = patches(ten, [f"v{number}" for number in range(6, 11)], workspaces.FIRST)
    assert change.norm == pytest.approx(np.linalg.norm(sum(map(workspaces.product, deltas))), rel=1e-6)


def test_on_the_command_line(ten: Workspace, check: Check) -> None:
    def back() -> None:
        # Each mode makes a version of its own, on v10.
        if ten.head() != "v10":
            with ten.lock("test"):
                ten.move_head("test", "v10")

    fields = check(
        ten,
        "revert",
        "v5",
        "--no-measure",
        "-m",
        "It was wrong",
        human=["took back v5\n", "v11", "on v10: 17 facts in force, 2 no longer", "layers.0.down.weight"],
        quiet="v12",
        stderr=["hint: `reviver diff v10 v11`"],
        before=back,
    )
    assert (fields["version"], fields["reverted"], fields["outcomes"], fields["dropped"]) == ("v13", "v5", None, [])
    assert ten.version("v13").manifest.message == "It was wrong"
