"""Forged and faulty `takes_back`: what no reader of the ledger could go on from is found in whole histories, and not taken in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import workspaces

from reviver.errors import ManifestError
from reviver.files import sha256_bytes
from reviver.history.chain import known_facts
from reviver.history.ledger import Ledger
from reviver.history.manifest import Manifest, ManifestEditor
from reviver.history.takes import branch_tips, unfounded_takes
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.verbs.import_ import import_
from reviver.verbs.verify import verify

UNFOUNDED = "takes back what it does not stand on"


def took(version: str, *facts: str, whole: bool = False) -> dict[str, Any]:
    return {"version": version, "facts": list(facts), "whole": whole}


def take_back(workspace: Workspace, name: str, takes: object) -> None:
    """Let a version that nothing stands on say that it takes something back, with an id that follows."""
    path = workspace.edits / name / "manifest.json"
    record = json.loads(path.read_bytes())
    record["editor"] = {"name": "revert", "reference_url": "", "settings": {"takes_back": takes}}
    manifest = Manifest.from_json(json.dumps(record).encode())
    record["id"] = manifest.expected_id(workspace.version_id(manifest.parent))
    path.write_text(json.dumps(record))
    if workspace.head_file.read_bytes().startswith(name.encode()):
        workspace.head_file.write_text(f"{name}\n")


def withhold(workspace: Workspace, name: str) -> None:
    for file in ("facts.jsonl", "results.jsonl"):
        (workspace.edits / name / file).unlink()
    (workspace.private / "operations.jsonl").unlink()


def fact_of(workspace: Workspace, name: str) -> str:
    return workspace.version(name).facts()[0].id


FORGED: dict[str, Callable[[Workspace], object]] = {
    "an id that is nobody's": lambda workspace: [took("ab" * 32, whole=True)],
    "a version beside it": lambda workspace: [took(workspace.version("v2").id, whole=True)],
    "a fact that the version does not hold": lambda workspace: [
        took(workspace.version("v1").id, fact_of(workspace, "v2"))
    ],
    "a version twice": lambda workspace: [took(workspace.version("v1").id, whole=True)] * 2,
    "a form that is none": lambda workspace: "all",
}


@pytest.mark.parametrize("case", FORGED)
def test_what_is_taken_back_without_being_there_is_a_finding_of_that_version(chained: Workspace, case: str) -> None:
    take_back(chained, "v3", FORGED[case](chained))
    with pytest.raises(ManifestError) as caught:
        known_facts(chained.chain("v3"))
    report = verify(chained.root, level="history")
    assert [(one.version, one.path) for one in report.findings] == [("v3", "edits/v3/manifest.json")]
    assert report.findings[0].problem == caught.value.message
    # Its bytes follow from its patches all the same, and are proven.
    full = verify(chained.root)
    assert full.findings == report.findings and all(one.rebuilt for one in full.versions)
    assert verify(chained.root, "v2").ok


@pytest.mark.parametrize("case", FORGED)
def test_such_a_version_is_not_taken_in(chained: Workspace, tmp_path: Path, case: str) -> None:
    empty = Workspace.create(tmp_path / "empty")
    empty.save_pin(chained.pin())
    # Once with what it stands on among the arrivals, and once with that being here already.
    partly = Workspace.create(tmp_path / "partly")
    partly.save_pin(chained.pin())
    shutil.copytree(chained.edits / "v1", partly.edits / "v1")
    shutil.copytree(chained.edits / "v2", partly.edits / "v2")
    take_back(chained, "v3", FORGED[case](chained))
    for here in (empty, partly):
        before = workspaces.snapshot(here.edits)
        with pytest.raises(ManifestError) as caught:
            import_(here.root, chained.root)
        assert caught.value.message.startswith(f"`{chained.edits}`: ") and "v3" in caught.value.message
        assert caught.value.hint is not None and caught.value.hint.startswith("nothing was taken")
        assert workspaces.snapshot(here.edits) == before
        assert here.leftovers() == [] and not here.pending_file.exists()


def test_what_is_there_may_be_taken_back_and_taken_in(chained: Workspace, tmp_path: Path) -> None:
    below = chained.version("v1")
    take_back(chained, "v3", [took(below.id, fact_of(chained, "v1")), took(below.id, whole=True)])
    assert verify(chained.root).ok
    here = Workspace.create(tmp_path / "here")
    here.save_pin(chained.pin())
    shutil.copytree(chained.edits / "v1", here.edits / "v1")
    assert [one.version for one in import_(here.root, chained.root).imported] == ["v2", "v3"]
    assert verify(here.root).ok


def test_a_history_without_its_facts_can_still_be_judged(chained: Workspace, tmp_path: Path) -> None:
    below, fact = chained.version("v1").id, fact_of(chained, "v1")
    take_back(chained, "v3", [took(below, fact, whole=True)])
    withhold(chained, "v1")
    assert verify(chained.root).ok
    here = Workspace.create(tmp_path / "here")
    here.save_pin(chained.pin())
    assert len(import_(here.root, chained.root).imported) == 3
    # What needs no facts is still found.
    take_back(chained, "v3", [took(below, fact, whole=True), took(below, whole=True)])
    assert [(one.version, one.problem) for one in verify(chained.root).findings] == [("v3", f"v3 {UNFOUNDED}")]


def test_damage_is_told_where_it_is(chained: Workspace) -> None:
    """A version whose facts are damaged has not taken the blame from, or given it to, the one above."""
    take_back(chained, "v3", [took(chained.version("v1").id, fact_of(chained, "v1"))])
    (chained.edits / "v1" / "facts.jsonl").write_bytes(b"{}\n")
    assert [one.path for one in verify(chained.root, level="history").findings] == ["edits/v1/facts.jsonl"]
    shutil.rmtree(chained.edits / "v1")
    found = {(one.version, one.path) for one in verify(chained.root, level="history").findings}
    assert found >= {("v2", "edits/v2/manifest.json"), ("v3", "edits/v3/manifest.json")}
    assert not any(UNFOUNDED in one.problem for one in verify(chained.root, level="history").findings)


def test_what_stands_on_a_forged_version_is_not_blamed(chained: Workspace) -> None:
    take_back(chained, "v3", FORGED["an id that is nobody's"](chained))
    workspaces.add_version(chained, [], {workspaces.FIRST: workspaces.low_rank(5)}, parent="v3", checkpoint=False)
    assert [one.version for one in verify(chained.root).findings] == ["v3"]


def chain_of(version: Version, count: int, *, takes: Mapping[int, object] | None = None) -> dict[str, Version]:
    """Return a chain of so many versions, by name, all made from one manifest."""
    made = {}
    for number in range(1, count + 1):
        settings = {"takes_back": (takes or {}).get(number, [])}
        manifest = replace(
            version.manifest,
            id=sha256_bytes(str(number).encode()),
            version=f"v{number}",
            parent=f"v{number - 1}",
            editor=ManifestEditor(name="revert", reference_url="", settings=settings),
        )
        made[f"v{number}"] = replace(version, name=f"v{number}", number=number, manifest=manifest)
    return made


def test_the_cost_of_a_long_chain_grows_with_its_length(chained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    last = sha256_bytes(b"299")
    versions = chain_of(chained.version("v1"), 300, takes={300: [took(last, whole=True)]})
    added, read = [], []
    add, facts = Ledger.add, Version.facts
    monkeypatch.setattr(Ledger, "add", lambda self, *parts: added.append(parts[1]) or add(self, *parts))
    monkeypatch.setattr(Version, "facts", lambda self: read.append(self.name) or facts(self))
    assert unfounded_takes(branch_tips(versions)) == {}
    assert added == list(versions) and read == []
    versions |= chain_of(chained.version("v1"), 300, takes={300: [took(last, fact_of(chained, "v1"))]})
    read.clear()
    assert unfounded_takes(branch_tips(versions)) == {}
    assert read == ["v299"], "facts are read only where single ones are taken back"


def test_the_tips_of_a_tree(chained: Workspace) -> None:
    versions = {version.name: version for version in chained.versions()}
    assert [[one.name for one in chain] for chain in branch_tips(versions)] == [["v1", "v2"], ["v1", "v3"]]
    del versions["v1"]
    assert list(branch_tips(versions)) == [], "nothing can be said of what does not reach the base"
