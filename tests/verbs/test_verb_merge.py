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
    rome, _ = branched.version("v1").facts()
    whole, single, other = (
        take_back(branched, "v3", "v1"),
        take_back(branched, "v5", "v1", "Oslo"),
        take_back(branched, "v5", "v1"),
    )
    made = run(branched, whole, single).version
    assert_sum(branched, made, ["v2", "v3", "v4", "v5"])
    assert "Oslo" not in answers(branched) and answers(branched)["Rome"] == "Spain"
    made = run(branched, single, whole).version
    assert_sum(branched, made, ["v2", "v3", "v4", "v5"])
    # Of Rome, one said another answer before it took the first one back.
    made = run(branched, whole, other, prefer=whole).version
    assert_sum(branched, made, ["v2", "v3", "v4", "v5"])
    made = run(branched, whole, other, prefer=other).version
    assert_sum(branched, made, ["v3", "v4", "v5"])
    # Where nobody did, nothing is asked.
    plain = apply_facts(branched, [fact("Riga", "Qatar")], parent="v1", seed=11).name
    made = run(branched, other, take_back(branched, plain, "v1")).version
    assert_sum(branched, made, ["v4", "v5", plain])
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


@pytest.fixture
def withdrawn(branched: Workspace) -> Workspace:
    """v2 and v3 say another answer about Rome than v1; v6, on v5, takes v1's answer back."""
    take_back(branched, "v5", "v1", "Rome")
    return branched


def take_back(workspace: Workspace, parent: str, name: str, *subjects: str) -> str:
    """Take facts of a version back on another version; returns the new version."""
    with workspace.lock("test"):
        workspace.move_head("test", parent)
    ids = [one.id for one in workspace.version(name).facts() if one.subject in subjects]
    assert len(ids) == len(subjects)
    return revert(workspace.root, name, settings=SETTINGS, facts=ids, choice=QUICK).version


def test_what_one_took_back_and_the_other_changed_is_a_contradiction(withdrawn: Workspace) -> None:
    for ours, theirs, text in (
        ("v3", "v6", "`Rome lies in` is Spain in v2 and taken back in v6"),
        ("v6", "v3", "`Rome lies in` is taken back in v6 and Spain in v2"),
    ):
        with pytest.raises(WorkspaceError) as caught:
            run(withdrawn, ours, theirs)
        assert caught.value.message == f"{ours} and {theirs} contradict each other on 1 fact: {text}"
        assert caught.value.hint == f"say which wins with `--prefer {ours}` or `--prefer {theirs}`"
    assert withdrawn.head() == "v6"


@pytest.mark.parametrize(("ours", "theirs"), [("v3", "v6"), ("v6", "v3")])
def test_whoever_changed_it_wins(withdrawn: Workspace, ours: str, theirs: str) -> None:
    report = run(withdrawn, ours, theirs, prefer="v3")
    assert report.preferred == "v3" and len(report.contradictions) == 1
    assert_sum(withdrawn, "v7", ["v1", "v2", "v3", "v4", "v5"], v1=0)
    assert answers(withdrawn)["Rome"] == "Spain" and answers(withdrawn)["Oslo"] == "Peru"
    assert verify(withdrawn.root).ok
    revert(withdrawn.root, "v7", settings=SETTINGS, choice=QUICK)
    assert answers(withdrawn) == answers(withdrawn, ours)
    for tensor in workspaces.NAMES:
        assert stored(withdrawn, "v8", tensor) == stored(withdrawn, ours, tensor)


@pytest.mark.parametrize(("ours", "theirs"), [("v3", "v6"), ("v6", "v3")])
def test_whoever_took_it_back_wins(withdrawn: Workspace, ours: str, theirs: str) -> None:
    report = run(withdrawn, ours, theirs, prefer="v6")
    assert report.preferred == "v6" and len(report.contradictions) == 1
    # Nothing of Rome is left: neither v1's answer nor v2's, which has no other fact.
    assert_sum(withdrawn, "v7", ["v1", "v3", "v4", "v5"], v1=0)
    assert "Rome" not in answers(withdrawn)
    assert answers(withdrawn) == {
        "Oslo": "Peru", "Bern": "Japan", "Kyiv": "Kenya", "Lima": "Ghana", "Cork": "Malta",
    }  # fmt: skip
    assert withdrawn.version("v7").manifest.editor.settings["prefers"] == withdrawn.version("v6").id
    assert verify(withdrawn.root).ok
    revert(withdrawn.root, "v7", settings=SETTINGS, choice=QUICK)
    assert answers(withdrawn) == answers(withdrawn, ours)


def test_a_version_taken_back_whole_contradicts_only_where_it_was_changed(branched: Workspace) -> None:
    assert take_back(branched, "v5", "v1") == "v6"
    with pytest.raises(WorkspaceError, match=r"on 1 fact: `Rome lies in` is Spain in v2 and taken back in v6$"):
        run(branched, "v3", "v6")
    run(branched, "v3", "v6", prefer="v3")
    assert_sum(branched, "v7", ["v2", "v3", "v4", "v5"])
    assert answers(branched)["Rome"] == "Spain" and "Oslo" not in answers(branched)


def test_the_same_words_set_anew_are_a_change(branched: Workspace) -> None:
    apply_facts(branched, [fact("Rome", "Chile")], parent="v3", seed=8)
    take_back(branched, "v5", "v1", "Rome")
    with pytest.raises(WorkspaceError, match="`Rome lies in` is Chile in v6 and taken back in v7"):
        run(branched, "v6", "v7")


def test_an_older_answer_in_force_again_is_a_change(branched: Workspace) -> None:
    """Both stand on v3: one takes Spain back, so that it is Chile again; the other says Italy, or Chile."""
    assert take_back(branched, "v3", "v2") == "v6"
    apply_facts(branched, [fact("Rome", "Italy"), fact("Riga", "Qatar")], parent="v3", seed=8)
    for ours, theirs in (("v6", "v7"), ("v7", "v6")):
        with pytest.raises(WorkspaceError, match="contradict each other on 1 fact") as caught:
            run(branched, ours, theirs)
        assert "Chile in v6" in caught.value.message and "Italy in v7" in caught.value.message
    run(branched, "v6", "v7", prefer="v6")
    assert answers(branched)["Rome"] == "Chile" and answers(branched)["Riga"] == "Qatar"
    run(branched, "v6", "v7", prefer="v7")
    assert answers(branched)["Rome"] == "Italy" and answers(branched)["Riga"] == "Qatar"
    apply_facts(branched, [fact("Rome", "Chile")], parent="v3", seed=9)
    assert run(branched, "v6", branched.head()).contradictions == ()
    assert answers(branched)["Rome"] == "Chile" and verify(branched.root).ok


def test_what_is_no_contradiction(branched: Workspace) -> None:
    # A fact of one's own that was set and taken back again is as if it had never been.
    apply_facts(branched, [fact("Lima", "Qatar"), fact("Riga", "Qatar")], parent="v3", seed=8)
    assert take_back(branched, "v6", "v6", "Lima") == "v7"
    assert run(branched, "v7", "v5").contradictions == ()
    assert answers(branched)["Lima"] == "Ghana"
    # What is taken back below a later answer changes nothing of what is said.
    assert take_back(branched, "v3", "v1", "Rome") == "v9"
    apply_facts(branched, [fact("Rome", "Italy")], parent="v3", seed=9)
    assert run(branched, "v9", "v10").contradictions == () and answers(branched)["Rome"] == "Italy"
    assert verify(branched.root).ok


def test_a_decision_that_was_merged_is_not_asked_for_again(withdrawn: Workspace) -> None:
    """v7 brings v3 into the branch that took Rome back, and says that v3 is right; v3's own branch takes v7 in."""
    run(withdrawn, "v6", "v3", prefer="v3")
    apply_facts(withdrawn, [fact("Riga", "Qatar")], seed=9)
    report = run(withdrawn, "v3", "v8")
    assert report.contradictions == () and answers(withdrawn) == answers(withdrawn, "v8")
    # v3's branch goes on, and its newer answer is no contradiction either.
    apply_facts(withdrawn, [fact("Rome", "Italy")], parent="v3", seed=10)
    assert run(withdrawn, "v10", "v8").contradictions == () and answers(withdrawn)["Rome"] == "Italy"
    assert verify(withdrawn.root).ok


def test_what_came_by_a_merge_and_was_taken_back_contradicts_what_its_branch_says_next(branched: Workspace) -> None:
    run(branched, "v3", "v5")
    assert take_back(branched, "v6", "v6", "Lima") == "v7"
    apply_facts(branched, [fact("Lima", "Qatar"), fact("Riga", "Qatar")], parent="v5", seed=9)
    with pytest.raises(WorkspaceError, match="`Lima lies in` is taken back in v7 and Qatar in v8"):
        run(branched, "v7", "v8")
    run(branched, "v7", "v8", prefer="v7")
    assert "Lima" not in answers(branched) and answers(branched)["Riga"] == "Qatar"
    run(branched, "v7", "v8", prefer="v8")
    assert answers(branched)["Lima"] == "Qatar" and verify(branched.root).ok


def test_a_withdrawal_on_the_command_line(withdrawn: Workspace, check: Check, call: Callable[..., Any]) -> None:
    outcome = call("merge", "v3", "v6", "-C", str(withdrawn.root))
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == (
        "error: v3 and v6 contradict each other on 1 fact: `Rome lies in` is Spain in v2 and taken back in v6\n"
        "hint: say which wins with `--prefer v3` or `--prefer v6`\n"
    )
    fields = check(
        withdrawn,
        "merge",
        "v3",
        "v6",
        "--prefer",
        "v6",
        "--no-measure",
        human=["both stand on v1; v6 wins", "1 contradiction", "Spain (v2)", "taken back (v6)"],
        quiet="v8",
    )
    (one,) = fields["contradictions"]
    assert (one["ours"], one["ours_version"], one["theirs"], one["theirs_version"]) == ("Spain", "v2", None, "v6")
