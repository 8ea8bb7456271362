"""What was measured is told of the fact it was measured for: ids are one file's own, and another file may give them anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import workspaces
from chains import QUICK, SETTINGS, apply_facts, known_family

from reviver.facts.fact import Fact
from reviver.history.workspace import Workspace
from reviver.verbs.blame import BlamedChange, blame
from reviver.verbs.merge import merge
from reviver.verbs.revert import revert
from reviver.verbs.show import show

Check = Callable[..., dict[str, Any]]


def fact(subject: str, target: str, id: str = "1") -> Fact:
    return replace(workspaces.make_fact(subject, target), id=id)


def write_results(workspace: Workspace, version: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write results.jsonl line by line: id, subject, target, probability and answer after."""
    lines = []
    for row in rows:
        before = {"probability_new": 0.5, "probability_true": None, "answer": "before " + row["subject"]}
        record = {
            "id": row["id"],
            "prompt": "{} lies in",
            "subject": row["subject"],
            "target_new": row["target"],
            "target_true": None,
            "before": before,
            "after": {**before, "probability_new": row["probability"], "answer": "after " + row["subject"]},
            "success": row["success"],
        }
        lines.append(json.dumps(record) + "\n")
    (workspace.edits / version / "results.jsonl").write_text("".join(lines))


def last_change(workspace: Workspace, subject: str) -> BlamedChange:
    (one,) = blame(workspace.root, subject).facts
    return one.changes[-1]


@pytest.fixture
def taken_back(workspace: Workspace) -> Workspace:
    """v3 takes v1 back, whose fact has the id of v2's; the results give that id to v2's fact, which is still in force."""
    apply_facts(workspace, [fact("Rome", "Chile")], seed=1)
    apply_facts(workspace, [fact("Oslo", "Peru")], seed=2)
    assert revert(workspace.root, "v1", settings=SETTINGS, choice=QUICK).version == "v3"
    rows = [
        {"id": "1", "subject": "Oslo", "target": "Peru", "probability": 0.9, "success": True},
        {"id": "made up", "subject": "Rome", "target": "Chile", "probability": 0.1, "success": False},
    ]
    write_results(workspace, "v3", rows)
    return workspace


def test_blame_tells_the_answers_of_the_fact_itself(taken_back: Workspace, check: Check) -> None:
    change = last_change(taken_back, "Rome")
    assert (change.version, change.what, change.target) == ("v3", "taken back", "Chile")
    assert (change.answer_before, change.answer_after) == ("before Rome", "after Rome")
    assert (change.probability_after, change.success) == (0.1, False)
    fields = check(taken_back, "blame", "Rome", human=["before Rome  after Rome"], quiet="")
    assert fields["facts"][0]["changes"][-1]["answer_after"] == "after Rome"


def test_blame_tells_nothing_where_only_another_fact_was_measured(taken_back: Workspace) -> None:
    rows = [{"id": "1", "subject": "Oslo", "target": "Peru", "probability": 0.9, "success": True}]
    write_results(taken_back, "v3", rows)
    change = last_change(taken_back, "Rome")
    assert (change.answer_after, change.probability_after, change.success) == (None, None, None)
    # The same subject and prompt with another target is another fact, too.
    write_results(taken_back, "v3", [{**rows[0], "subject": "Rome", "target": "Spain"}])
    assert last_change(taken_back, "Rome").answer_after is None


def test_damage_elsewhere_in_the_file_is_told_where_the_id_is_another_facts(taken_back: Workspace) -> None:
    path = taken_back.edits / "v3" / "results.jsonl"
    path.write_bytes(path.read_bytes() + b"{}\n")
    report = blame(taken_back.root, "Rome")
    assert report.facts[0].changes[-1].answer_after is None
    assert len(report.warnings) == 1 and "v3/results.jsonl:3" in report.warnings[0]


def test_show_puts_every_answer_on_its_own_row(workspace: Workspace, check: Check) -> None:
    known_family(workspace)
    apply_facts(workspace, [fact("Bern", "Japan", "0")], seed=1)
    apply_facts(workspace, [fact("Rome", "Chile")], seed=2)
    apply_facts(workspace, [fact("Oslo", "Peru")], parent="v1", seed=3)
    merge(workspace.root, "v2", "v3", settings=SETTINGS, choice=QUICK)
    # The merge brings Oslo alone, under its own id; Rome was there before and comes first among what was asked.
    assert [one.id for one in workspace.version("v4").facts()] == ["1"]
    rows = [
        {"id": "1", "subject": "Rome", "target": "Chile", "probability": 0.9, "success": True},
        {"id": "made up", "subject": "Oslo", "target": "Peru", "probability": 0.1, "success": False},
    ]
    write_results(workspace, "v4", rows)
    report = show(workspace.root)
    (row,) = report.facts
    assert (row.text, row.answer_before, row.answer_after) == ("Oslo lies in", "before Oslo", "after Oslo")
    assert (row.probability_after, row.success, report.successes) == (0.1, False, 0)
    check(
        workspace,
        "show",
        human=["1 fact, 0 answered as wanted", "before Oslo  after Oslo"],
        quiet=workspace.version("v4").id,
    )
    change = last_change(workspace, "Oslo")
    assert (change.version, change.what, change.answer_after) == ("v4", "set", "after Oslo")
