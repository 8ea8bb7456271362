"""squash, merge and adopt make the head a version that may not stand for all that the former head held: they say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import workspaces
from chains import QUICK, SETTINGS, apply_facts, known_family

from reviver.history.ledger import known_facts
from reviver.history.workspace import Workspace
from reviver.verbs.adopt import adopt
from reviver.verbs.made import MadeReport
from reviver.verbs.merge import merge
from reviver.verbs.redo import redo
from reviver.verbs.revert import revert
from reviver.verbs.squash import squash
from reviver.verbs.undo import undo

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def six(workspace: Workspace) -> Workspace:
    """Six versions in a row, of one fact each."""
    known_family(workspace)
    for number in range(1, 7):
        apply_facts(workspace, [workspaces.make_fact(f"A{number}", "Peru")], seed=number)
    return workspace


def subjects(workspace: Workspace, name: str = "head") -> set[str]:
    return {subject for subject, _ in known_facts(workspace.chain(name))}


def put_head(workspace: Workspace, name: str) -> None:
    with workspace.lock("test"):
        workspace.move_head("test", name)


def run_squash(workspace: Workspace, span: str) -> MadeReport:
    return squash(workspace.root, span, settings=SETTINGS, choice=QUICK)


def run_merge(workspace: Workspace, ours: str, theirs: str) -> MadeReport:
    return merge(workspace.root, ours, theirs, settings=SETTINGS, choice=QUICK)


def run_adopt(workspace: Workspace, parent: str, source: str = "v6") -> MadeReport:
    folder = workspace.checkpoint(source)
    return adopt(workspace.root, folder, settings=SETTINGS, parent=parent, choice=QUICK)


def told(report: MadeReport) -> list[str]:
    return [one for one in report.warnings if "not in the new head" in one]


def test_a_squash_below_the_head_tells_what_the_head_no_longer_has(six: Workspace) -> None:
    report = run_squash(six, "v1..v4")
    assert subjects(six) == {"A1", "A2", "A3", "A4"}
    assert told(report) == [
        "the head was v6: v5 and v6 are not in the new head, v7; "
        "`reviver merge v7 v6` brings them in, `reviver undo` goes back to v6"
    ]
    # Both ways that the warning names lead to what was there.
    undo(six.root)
    assert six.head() == "v6"
    redo(six.root)
    report = run_merge(six, "v7", "v6")
    assert subjects(six) == subjects(six, "v6") and told(report) == []


def test_a_squash_up_to_the_head_loses_nothing(six: Workspace) -> None:
    assert told(run_squash(six, "v1..v6")) == []
    # The new head has all that v7 is the sum of.
    assert told(run_squash(six, "..v6")) == []


def test_what_was_taken_back_is_not_missed(six: Workspace) -> None:
    revert(six.root, "v6", settings=SETTINGS, choice=QUICK)
    assert told(run_squash(six, "..v5")) == [] and subjects(six) == subjects(six, "v7")
    put_head(six, "v7")
    revert(six.root, "v2", settings=SETTINGS, choice=QUICK)
    # What v9 took back is in force in the new head.
    (text,) = told(run_squash(six, "..v5"))
    assert text.startswith("the head was v9: v9 is not in the new head, v10; ")
    put_head(six, "v9")
    revert(six.root, "v9", settings=SETTINGS, choice=QUICK)
    assert told(run_squash(six, "..v5")) == [] and subjects(six) == subjects(six, "v11")


def test_what_was_merged_or_squashed_is_told_by_its_versions(six: Workspace) -> None:
    apply_facts(six, [workspaces.make_fact("B", "Peru")], parent="v4", seed=9)
    run_merge(six, "v6", "v7")
    assert told(run_merge(six, "v7", "v6")) == [], "v9 has all that v8 had"
    (text,) = told(run_squash(six, "..v5"))
    assert text.startswith("the head was v9: v6 and v7 are not in the new head, v10; ")


def test_a_merge_of_others_tells_of_the_head(six: Workspace) -> None:
    apply_facts(six, [workspaces.make_fact("B", "Peru")], parent="v2", seed=9)
    assert told(run_merge(six, "v7", "v3")) == []
    put_head(six, "v6")
    (text,) = told(run_merge(six, "v7", "v4"))
    assert text.startswith("the head was v6: v5 and v6 are not in the new head, v9; ")
    put_head(six, "v6")
    assert told(run_merge(six, "v7", "v6")) == []
    put_head(six, "v7")
    assert told(run_merge(six, "v6", "v7")) == []


def test_an_adoption_on_the_base_tells_of_the_head(six: Workspace) -> None:
    assert subjects(six) == {f"A{number}" for number in range(1, 7)}
    (text,) = told(run_adopt(six, "base"))
    assert subjects(six) == set()
    assert text.startswith("the head was v6: v1, v2, v3, v4, v5 and 1 more are not in the new head, v7; ")
    # Nothing of an adopted model is a fact, and it is told of all the same.
    (text,) = told(run_adopt(six, "v5"))
    assert text == (
        "the head was v7: v7 is not in the new head, v8; "
        "`reviver merge v8 v7` brings it in, `reviver undo` goes back to v7"
    )


def test_an_adoption_on_the_head_loses_nothing(six: Workspace) -> None:
    put_head(six, "v3")
    assert told(run_adopt(six, "v3")) == []
    put_head(six, "v0")
    assert told(run_adopt(six, "base")) == []
    assert told(revert(six.root, six.head(), settings=SETTINGS, choice=QUICK)) == []


def test_a_head_that_cannot_be_read_stops_nothing(six: Workspace) -> None:
    (six.edits / "v6" / "manifest.json").write_text("{}")
    report = run_squash(six, "..v4")
    assert six.head() == "v7" and subjects(six) == {"A1", "A2", "A3", "A4"}
    (text,) = report.warnings
    assert text.startswith("whether the new head, v7, has everything that v6 had cannot be told: ")
    assert "v6/manifest.json" in text


def test_on_the_command_line(six: Workspace, check: Check) -> None:
    check(
        six,
        "squash",
        "..v4",
        "--no-measure",
        human=["squashed v1, v2, v3, v4"],
        quiet="v8",
        stderr=["warning: the head was v6: v5 and v6 are not in the new head, v7; "],
        before=lambda: put_head(six, "v6"),
    )
    fields = check(
        six,
        "adopt",
        str(six.checkpoint("v4")),
        "--no-measure",
        human=["adopted"],
        quiet="v11",
        stderr=["v1, v2, v3, v4, v5 and 1 more are not in the new head, v10; "],
        before=lambda: put_head(six, "v6"),
    )
    assert "v1, v2, v3, v4, v5 and 1 more are not in the new head, v12" in fields["warnings"][-1]


def test_adopting_a_version_of_the_history_names_it(six: Workspace) -> None:
    """Its facts are not adopted with its weights, which whoever wanted to go on from it would not expect."""
    report = run_adopt(six, "base", source="v3")
    assert (
        "v3 holds the same weights, with its facts: `reviver apply FACTS --from v3` goes on from there"
        in report.warnings
    )
    again = run_adopt(six, "v1", source="v3")
    assert again.warnings[0].startswith("v3 holds"), "the one that was made first, not what was adopted of it"
