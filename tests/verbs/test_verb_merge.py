"""merge: the bytes are those of both branches' patches, in fractions; contradictions are refused or decided; overlap is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import workspaces
from chains import QUICK, SETTINGS, apply_facts, component, expected, known_family, patches, stored

from reviver.errors import UsageError, WorkspaceError
from reviver.facts.fact import Fact
from reviver.history.chain import known_facts
from reviver.history.workspace import Workspace
from reviver.verbs.merge import MergeReport, merge
from reviver.verbs.revert import revert
from reviver.verbs.verify import verify

Check = Callable[..., dict[str, Any]]


def run(workspace: Workspace, ours: str, theirs: str, prefer: str | None = None) -> MergeReport:
    return merge(workspace.root, ours, theirs, settings=SETTINGS, prefer=prefer, choice=QUICK)


def answers(workspace: Workspace, name: str = "head") -> dict[str, str]:
    return {key[0]: known.fact.target_new for key, known in known_facts(workspace.chain(name)).items()}


def fact(subject: str, target: str) -> Fact:
    return workspaces.make_fact(subject, target)


@pytest.fixture
def branched(workspace: Workspace) -> Workspace:
    """v1 below two branches: v2 and v3, which change what v1 says of Rome; and v4 and v5 beside them."""
    known_family(workspace)
    apply_facts(workspace, [fact("Rome", "Chile"), fact("Oslo", "Peru")], seed=1)
    apply_facts(workspace, [fact("Rome", "Spain")], seed=2)
    apply_facts(workspace, [fact("Bern", "Japan"), fact("Kyiv", "Kenya")], seed=3)
    apply_facts(workspace, [fact("Lima", "Italy")], parent="v1", seed=4)
    apply_facts(workspace, [fact("Lima", "Ghana"), fact("Cork", "Malta")], seed=5)
    return workspace


def assert_sum(workspace: Workspace, version: str, names: list[str], **without: int) -> None:
    """Assert that a version's bytes are those of these patches, less single components by version."""
    for tensor in workspaces.NAMES:
        deltas = patches(workspace, [name for name in names if name not in without], tensor)
        for name, dropped in without.items():
            (own,) = patches(workspace, [name], tensor)
            deltas += [component(own, index) for index in range(own.rank) if index != dropped]
        assert stored(workspace, version, tensor) == expected(workspace, tensor, deltas)


def test_both_branches_in_one(branched: Workspace) -> None:
    report = run(branched, "v3", "v5")
    assert (report.version, report.parent, report.merged, report.ancestor) == ("v6", "v3", "v5", "v1")
    assert report.versions == ("v4", "v5") and report.contradictions == () and report.preferred is None
    assert_sum(branched, "v6", ["v1", "v2", "v3", "v4", "v5"])
    assert answers(branched) == {
        "Rome": "Spain", "Oslo": "Peru", "Bern": "Japan", "Kyiv": "Kenya", "Lima": "Ghana", "Cork": "Malta",
    }  # fmt: skip
    version = branched.version("v6")
    assert [one.target_new for one in version.facts()] == ["Ghana", "Malta"]
    assert version.manifest.editor.settings["merges"] == branched.version("v5").id
    assert version.manifest.editor.settings["ancestor"] == branched.version("v1").id
    assert verify(branched.root).ok


def test_the_other_way_round_gives_the_same_bytes(branched: Workspace) -> None:
    run(branched, "v3", "v5")
    run(branched, "v5", "v3")
    for tensor in workspaces.NAMES:
        assert stored(branched, "v6", tensor) == stored(branched, "v7", tensor)
    assert answers(branched, "v6") == answers(branched, "v7")


def test_overlap_is_that_of_the_right_factors(branched: Workspace) -> None:
    report = run(branched, "v3", "v5")
    assert [one.name for one in report.overlap] == sorted(workspaces.NAMES)
    for one in report.overlap:
        spans = [
            np.linalg.qr(
                np.concatenate([delta.right for delta in patches(branched, names, one.name)]).T.astype(float)
            ).Q
            for names in (["v2", "v3"], ["v4", "v5"])
        ]
        cosines = np.linalg.svd(spans[0].T @ spans[1], compute_uv=False)
        assert one.cosines == pytest.approx(cosines, abs=1e-6)
        assert one.shared == pytest.approx(np.mean(cosines**2), abs=1e-6)


def test_a_fact_of_a_merge_can_be_taken_back(branched: Workspace) -> None:
    run(branched, "v3", "v5")
    (lima, _) = branched.version("v6").facts()
    revert(branched.root, "v6", settings=SETTINGS, facts=[lima.id], choice=QUICK)
    # Both of the branch's answers about Lima came with the merge, and both go.
    assert_sum(branched, "v7", ["v1", "v2", "v3", "v5"], v5=0)
    assert "Lima" not in answers(branched) and answers(branched)["Cork"] == "Malta"
    revert(branched.root, "v6", settings=SETTINGS, choice=QUICK)
    assert_sum(branched, "v8", ["v1", "v2", "v3"])
    assert answers(branched) == answers(branched, "v3")
    assert verify(branched.root).ok


@pytest.fixture
def contradicting(branched: Workspace) -> Workspace:
    apply_facts(branched, [fact("Kyiv", "Egypt"), fact("Bern", "Japan")], seed=6)
    return branched


def test_contradictions_are_refused(contradicting: Workspace) -> None:
    with pytest.raises(WorkspaceError) as caught:
        run(contradicting, "v3", "v6")
    assert caught.value.message == (
        "v3 and v6 contradict each other on 1 fact: `Kyiv lies in` is Kenya in v3 and Egypt in v6"
    )
    assert caught.value.hint == "say which wins with `--prefer v3` or `--prefer v6`"
    with pytest.raises(UsageError, match="neither v3 nor v6"):
        run(contradicting, "v3", "v6", prefer="v1")
    assert contradicting.head() == "v6"


def test_ours_win(contradicting: Workspace) -> None:
    report = run(contradicting, "v3", "v6", prefer="v3")
    assert report.preferred == "v3" and report.agreeing == 1 and len(report.contradictions) == 1
    assert "1 fact set alike" in report.warnings[0]
    assert_sum(contradicting, "v7", ["v1", "v2", "v3", "v4", "v5", "v6"], v6=0)
    assert answers(contradicting)["Kyiv"] == "Kenya"
    assert verify(contradicting.root).ok


def test_theirs_win(contradicting: Workspace) -> None:
    report = run(contradicting, "v3", "v6", prefer="v6")
    assert report.preferred == "v6" and report.facts_dropped == 1
    assert_sum(contradicting, "v7", ["v1", "v2", "v3", "v4", "v5", "v6"], v3=1)
    assert answers(contradicting)["Kyiv"] == "Egypt"
    # What the merge took back of v3 comes back with it.
    revert(contradicting.root, "v7", settings=SETTINGS, choice=QUICK)
    assert_sum(contradicting, "v8", ["v1", "v2", "v3"])
    assert answers(contradicting) == answers(contradicting, "v3")
    assert verify(contradicting.root).ok


def test_a_loser_that_is_not_apart_is_refused_by_name(branched: Workspace) -> None:
    facts = [fact("Kyiv", "Egypt"), fact("Riga", "Qatar")]
    workspaces.add_version(branched, facts, {workspaces.FIRST: workspaces.dense(7)})
    with pytest.raises(
        WorkspaceError, match="`Kyiv` cannot be left out: the patch of v6 does not keep its facts apart"
    ):
        run(branched, "v3", "v6", prefer="v3")
    # The other one's facts are apart, so that it may lose.
    report = run(branched, "v3", "v6", prefer="v6")
    assert report.exact and workspaces.FIRST in [loss.name for loss in report.losses]
    assert answers(branched)["Kyiv"] == "Egypt" and verify(branched.root).ok


def test_what_both_took_back_is_taken_back_once(branched: Workspace) -> None:
    def take_back(parent: str, *facts: str) -> str:
        with branched.lock("test"):
            branched.move_head("test", parent)
        return revert(branched.root, "v1", settings=SETTINGS, facts=facts, choice=QUICK).version

    rome, oslo = branched.version("v1").facts()
    whole, single, other = take_back("v3"), take_back("v5", oslo.id), take_back("v5")
    made = run(branched, whole, single).version
    assert_sum(branched, made, ["v2", "v3", "v4", "v5"])
    assert "Oslo" not in answers(branched) and answers(branched)["Rome"] == "Spain"
    made = run(branched, single, whole).version
    assert_sum(branched, made, ["v2", "v3", "v4", "v5"])
    made = run(branched, whole, other).version
    assert_sum(branched, made, ["v2", "v3", "v4", "v5"])
    # What one branch took back is not in the merge, whichever side it is on.
    made = run(branched, "v3", single).version
    assert_sum(branched, made, ["v1", "v2", "v3", "v4", "v5"], v1=1)
    assert "Oslo" not in answers(branched)
    made = run(branched, single, "v3").version
    assert_sum(branched, made, ["v1", "v2", "v3", "v4", "v5"], v1=1)
    assert rome.key in known_facts(branched.chain(made)) and verify(branched.root).ok


def test_what_was_merged_is_not_merged_again(branched: Workspace) -> None:
    run(branched, "v3", "v4")
    # The branch goes on, and is merged once more: only what is new comes.
    report = run(branched, "v6", "v5")
    assert report.versions == ("v5",)
    everything = ["v1", "v2", "v3", "v4", "v5"]
    assert_sum(branched, "v7", everything)
    with pytest.raises(WorkspaceError, match="v7 has everything of v5 already"):
        run(branched, "v7", "v5")
    # A branch that was brought up to date by a merge comes back without what it had from here.
    run(branched, "v5", "v3")
    apply_facts(branched, [fact("Riga", "Qatar")], seed=9)
    report = run(branched, "v3", "v9")
    assert report.versions == ("v4", "v5", "v9")
    assert_sum(branched, "v10", [*everything, "v9"])
    assert answers(branched) == answers(branched, "v9") and report.agreeing == 0
    # Here a merge holds what this branch has in part.
    with pytest.raises(WorkspaceError, match="v8 holds patches that the other branch has already, and others"):
        run(branched, "v2", "v9")
    # A merge that was taken back may come again.
    with branched.lock("test"):
        branched.move_head("test", "v6")
    revert(branched.root, "v6", settings=SETTINGS, choice=QUICK)
    assert run(branched, "v11", "v5").versions == ("v4", "v5")
    assert_sum(branched, "v12", everything)
    assert verify(branched.root).ok


def test_versions_that_were_made_twice_are_one(branched: Workspace) -> None:
    twin = apply_facts(branched, [fact("Lima", "Italy")], parent="v1", seed=4)
    assert twin.id == branched.version("v4").id
    run(branched, "v3", twin.name)
    assert run(branched, "v7", "v5").versions == ("v5",)
    with pytest.raises(WorkspaceError, match="v8 has everything of v4 already"):
        run(branched, "v8", "v4")
    assert_sum(branched, "v8", ["v1", "v2", "v3", "v4", "v5"])


def test_nothing_to_merge(branched: Workspace) -> None:
    for ours, theirs, text in (
        ("v3", "v1", "v3 has everything of v1 already"),
        ("v1", "v3", "v3 stands on v1 already"),
        ("v3", "v3", "v3 has everything of v3 already"),
        ("base", "v3", "v3 stands on v0 already"),
    ):
        with pytest.raises(WorkspaceError, match=text):
            run(branched, ours, theirs)
    revert(branched.root, "v5", settings=SETTINGS, choice=QUICK)
    revert(branched.root, "v4", settings=SETTINGS, choice=QUICK)
    with pytest.raises(WorkspaceError, match="nothing of v7 is left to merge into v3"):
        run(branched, "v3", "v7")


def test_on_the_command_line(contradicting: Workspace, check: Check, call: Callable[..., Any]) -> None:
    fields = check(
        contradicting,
        "merge",
        "v3",
        "v6",
        "--prefer",
        "v3",
        "--no-measure",
        human=[
            "merged v4, v5, v6 into v3; both stand on v1; v3 wins",
            "1 contradiction",
            "Kenya (v3)",
            "overlap of keys",
        ],
        quiet="v8",
        stderr=["warning: 1 fact set alike", "hint: `reviver diff v3 v7`"],
    )
    assert fields["contradictions"][0]["theirs"] == "Egypt" and fields["ancestor"] == "v1"
    outcome = call("merge", "v3", "v6", "--json", "-C", str(contradicting.root))
    assert outcome.code == 1 and json.loads(outcome.stderr)["error"]["type"] == "WorkspaceError"
