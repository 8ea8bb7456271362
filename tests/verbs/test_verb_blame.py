"""blame, the graph, and what is told where facts are withheld: against the history read in another way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import workspaces

from reviver.errors import ReviverError, UsageError
from reviver.history.comparison import compare_facts
from reviver.history.ledger import known_facts
from reviver.history.manifest import Manifest, ManifestEditor
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.verbs.blame import blame
from reviver.verbs.diff import diff
from reviver.verbs.show import show
from reviver.verbs.tag import tag
from reviver.verbs.verify import verify

Check = Callable[..., dict[str, Any]]
Call = Callable[..., Any]


# blame


def test_blame_tells_who_set_a_fact_and_who_changed_it(chained: Workspace, check: Check) -> None:
    fields = check(
        chained,
        "blame",
        "Rome",
        "--at",
        "v2",
        human=[
            "Rome lies in → Chile (v2)",
            "  v2       20",
            "changed  Chile   nowhere  Chile   0.010     0.980    second",
        ],
        quiet="v2",
    )
    assert (fields["match"], fields["at"], len(fields["facts"])) == ("exact", "v2", 1)
    fact = fields["facts"][0]
    assert (fact["subject"], fact["prompt"], fact["text"]) == ("Rome", "{} lies in", "Rome lies in")
    assert [(one["version"], one["what"], one["target"]) for one in fact["changes"]] == [
        ("v1", "set", "Norway"),
        ("v2", "changed", "Chile"),
    ]
    last = fact["changes"][-1]
    assert (last["answer_before"], last["answer_after"], last["success"]) == ("nowhere", "Chile", True)
    assert last["id"] == chained.version("v2").id
    assert last["created"] == chained.version("v2").manifest.created


def test_blame_follows_the_chain_of_the_version_asked_for(chained: Workspace) -> None:
    assert blame(chained.root, "Rome").facts[0].version == "v1", "the head, v3, stands on v1"
    with pytest.raises(ReviverError, match="no fact of v3 or below it is about `Lima`"):
        blame(chained.root, "Lima")
    assert blame(chained.root, "Lima", "v2").facts[0].version == "v2"


@pytest.mark.parametrize(
    ("query", "match", "subjects"),
    [
        ("Oslo", "exact", ["Oslo"]),
        (" Oslo lies in ", "exact", ["Oslo"]),
        ("{} lies in", "exact", ["Rome", "Oslo", "Lima"]),
        ("oslo", "case", ["Oslo"]),
        ("ROME LIES IN", "case", ["Rome"]),
        ("o", "part", ["Rome", "Oslo"]),
        ("e lies", "part", ["Rome"]),
        ("LIES IN", "part", ["Rome", "Oslo", "Lima"]),
    ],
)
def test_what_blame_takes_for_a_match(chained: Workspace, query: str, match: str, subjects: Sequence[str]) -> None:
    report = blame(chained.root, query, "v2")
    assert report.match == match
    assert [fact.subject for fact in report.facts] == subjects


def test_an_accent_is_the_same_as_one_character_or_as_two(workspace: Workspace) -> None:
    workspaces.add_version(
        workspace,
        [workspaces.make_fact("Zoe\u0308", "Peru")],
        {workspaces.FIRST: workspaces.low_rank(1)},
        checkpoint=False,
    )
    report = blame(workspace.root, "Zo\u00eb")
    assert (report.match, [fact.subject for fact in report.facts]) == ("case", ["Zoe\u0308"])


def test_blame_without_results_or_with_damaged_ones(chained: Workspace) -> None:
    (chained.edits / "v1" / "results.jsonl").unlink()
    assert blame(chained.root, "Rome").facts[0].changes[0].answer_after is None
    (chained.edits / "v1" / "results.jsonl").write_bytes(
        b'{"id": ' + json.dumps(chained.version("v1").facts()[0].id).encode() + b"}\n"
    )
    report = blame(chained.root, "Rome")
    assert len(report.warnings) == 1 and report.facts[0].changes[0].success is None
    for query in ("", "  "):
        with pytest.raises(UsageError):
            blame(chained.root, query)


def test_blame_tells_what_was_taken_back_and_restored(chained: Workspace) -> None:
    first, second = chained.version("v1"), chained.version("v2")
    rome = {fact.subject: fact.id for fact in second.facts()}["Rome"]
    oslo = {fact.subject: fact.id for fact in first.facts()}["Oslo"]
    taking = add_taking_back(chained, "v2", [(second.id, [rome], False), (first.id, [oslo], False)])
    assert [(one.version, one.what, one.target) for one in blame(chained.root, "Rome").facts[0].changes] == [
        ("v1", "set", "Norway"),
        ("v2", "changed", "Chile"),
        (taking.name, "restored", "Norway"),
    ]
    gone = blame(chained.root, "Oslo").facts[0]
    assert (gone.target, gone.version, gone.changes[-1].what) == (None, None, "taken back")
    back = add_taking_back(chained, taking.name, [(taking.id, [], True)])
    assert blame(chained.root, "Rome").facts[0].changes[-1].target == "Chile"
    again = blame(chained.root, "Oslo").facts[0]
    assert (again.target, again.version, again.changes[-1].what) == ("Italy", back.name, "restored")
    assert {key: known.fact.target_new for key, known in known_facts(chained.chain("head")).items()} == {
        ("Rome", "{} lies in"): blame(chained.root, "Rome").facts[0].target,
        ("Oslo", "{} lies in"): "Italy",
        ("Lima", "{} lies in"): "Spain",
    }


def add_taking_back(workspace: Workspace, parent: str, takes: Sequence[tuple[str, list[str], bool]]) -> Version:
    """Make a version as `revert` does: a patch of its own, and in the manifest what it takes back."""
    with workspace.draft("revert") as draft:
        deltas = {workspaces.FIRST: workspaces.low_rank(40 + draft.number)}
        workspaces.fill_draft(workspace, draft, [], deltas, parent=parent, checkpoint=False)
        path = draft.edits_folder / "manifest.json"
        made = Manifest.from_json(path.read_bytes())
        entries = [{"version": id, "facts": facts, "whole": whole} for id, facts, whole in takes]
        editor = ManifestEditor(name="revert", reference_url="", settings={"takes_back": entries})
        parent_id = workspace.version_id(parent)
        changed = replace(made, editor=editor)
        path.write_bytes(replace(changed, id=changed.expected_id(parent_id)).to_json())
        return draft.commit({})


# log --graph


def test_the_graph_shows_branches_tags_and_the_head(chained: Workspace, call: Call) -> None:
    tag(chained.root, "good", "v2")
    lines = call("log", "--graph", "-C", str(chained.root)).stdout.splitlines()
    assert [line.split(" 20")[0] for line in lines] == [
        f"* v3 {chained.version('v3').id[:8]} (head)",
        f"| * v2 {chained.version('v2').id[:8]} (good)",
        "|/",
        f"* v1 {chained.version('v1').id[:8]}",
        "* v0 the base",
    ]
    assert lines[0].endswith(", 1 fact: branch") and lines[1].endswith(", 2 facts: second")


# diff and verify, where facts are withheld


def test_diff_reads_the_facts_that_can_differ_and_tells_what_all_facts_tell(workspace: Workspace) -> None:
    make = workspaces.make_fact
    batches = [
        ([make("A", "1"), make("B", "1")], "v0"),
        ([make("B", "2"), make("C", "1")], "v1"),
        ([make("C", "2")], "v2"),
        ([make("B", "1"), make("D", "1")], "v2"),
        ([make("A", "3"), make("D", "2")], "v4"),
    ]
    for number, (facts, parent) in enumerate(batches):
        deltas = {workspaces.FIRST: workspaces.low_rank(number)}
        workspaces.add_version(workspace, facts, deltas, parent=parent, checkpoint=False)
    add_taking_back(
        workspace, "v5", [(workspace.version("v2").id, [fact.id for fact in workspace.version("v2").facts()], True)]
    )
    chains = {name: workspace.chain(name) for name in ("v0", *workspace.version_names())}
    for before in chains:
        for after in chains:
            told = {
                (change.subject, change.prompt): (change.before, change.after)
                for change in compare_facts(chains[before], chains[after])
            }
            old, new = (
                {key: known.fact.target_new for key, known in known_facts(chains[name]).items()}
                for name in (before, after)
            )
            expected = {key: (old.get(key), new.get(key)) for key in {*old, *new} if old.get(key) != new.get(key)}
            assert told == expected, (before, after)


def withhold(workspace: Workspace, name: str) -> None:
    for file in ("facts.jsonl", "results.jsonl"):
        (workspace.edits / name / file).unlink()


def test_withheld_facts_are_no_damage_in_a_history_from_elsewhere(chained: Workspace, check: Check) -> None:
    withhold(chained, "v1")
    chained.operations_file.unlink()
    fields = check(
        chained, "verify", human=["facts withheld: v1 (published without their text", "everything holds"], quiet="ok"
    )
    assert [(one["version"], one["withheld"]) for one in fields["versions"]] == [
        ("v1", True),
        ("v2", False),
        ("v3", False),
    ]
    said = "the facts of v1 are withheld: they were published without their text"
    fields = check(
        chained,
        "diff",
        "v0",
        "v2",
        human=["2 facts (2 added)"],
        stderr=[f"warning: {said}"],
        quiet=diff(chained.root, "v0", "v2").summary,
    )
    assert fields["warnings"] == [said]
    with pytest.raises(ReviverError, match=r"is about `Oslo` \(the facts of v1 are withheld"):
        blame(chained.root, "Oslo")
    assert blame(chained.root, "Bern").warnings == (said,)
    assert "the facts of v1 are withheld" in show(chained.root, "v1").warnings[0]


def test_facts_that_were_made_here_and_are_gone_are_damage(chained: Workspace) -> None:
    withhold(chained, "v1")
    found = [(one.version, one.path) for one in verify(chained.root).findings]
    assert found == [("v1", "edits/v1/facts.jsonl")]


@pytest.mark.parametrize("name", ["facts.jsonl", "results.jsonl"])
def test_only_one_of_both_files_is_no_withholding(chained: Workspace, name: str) -> None:
    chained.operations_file.unlink()
    (chained.edits / "v1" / name).unlink()
    report = verify(chained.root)
    assert report.ok is (name == "results.jsonl"), "results are not hashed, and a version may go without"
    assert not report.versions[0].withheld


def test_a_forged_manifest_with_withheld_facts_is_damage(chained: Workspace) -> None:
    withhold(chained, "v1")
    chained.operations_file.unlink()
    path = chained.edits / "v1" / "manifest.json"
    record = json.loads(path.read_bytes())
    record["facts"]["count"] += 1
    path.write_text(json.dumps(record))
    assert ("v1", "edits/v1/manifest.json") in [(one.version, one.path) for one in verify(chained.root).findings]
