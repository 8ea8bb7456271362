"""merge of two branches drawn at random, against a three-way comparison of the answers in force, key by key."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import workspaces
from chains import QUICK, SETTINGS, apply_facts, known_family, stored

from reviver.errors import WorkspaceError
from reviver.history.chain import known_facts
from reviver.history.ledger import Key
from reviver.history.workspace import Workspace
from reviver.verbs.merge import MergeReport, merge
from reviver.verbs.revert import revert
from reviver.verbs.verify import verify

State = dict[Key, tuple[str, str]]
"""By fact the answer in force and the version that set it."""


def state(workspace: Workspace, name: str) -> State:
    return {key: (one.fact.target_new, one.version) for key, one in known_facts(workspace.chain(name)).items()}


def answer(state: State, key: Key) -> str | None:
    return state[key][0] if key in state else None


def grow(workspace: Workspace, draw: random.Random, steps: int, seed: int) -> str:
    """Put some versions on the head: facts about a few subjects, versions and single facts taken back."""
    for number in range(steps):
        chain = [version.name for version in workspace.chain("head")]
        if chain and draw.random() < 0.45:
            name = draw.choice(chain)
            facts = [fact.id for fact in workspace.version(name).facts()]
            some = [draw.choice(facts)] if facts and draw.random() < 0.6 else []
            try:
                revert(workspace.root, name, settings=SETTINGS, facts=some, choice=QUICK)
            except WorkspaceError as error:
                assert "taken back" in error.message or "left to take back" in error.message
        else:
            subjects = draw.sample("ABCD", draw.choice((1, 2)))
            facts_drawn = [workspaces.make_fact(one, draw.choice("xyz")) for one in subjects]
            apply_facts(workspace, facts_drawn, seed=seed + number)
    return workspace.head()


def attempt(workspace: Workspace, ours: str, theirs: str, prefer: str | None) -> MergeReport | WorkspaceError:
    try:
        return merge(workspace.root, ours, theirs, settings=SETTINGS, prefer=prefer, choice=QUICK)
    except WorkspaceError as error:
        return error


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_random_branches(count: int, tmp_path: Path) -> None:
    for seed in range(count):
        check_one(workspaces.make_workspace(tmp_path / str(seed)), seed)


def check_one(workspace: Workspace, seed: int) -> None:
    draw = random.Random(seed)
    known_family(workspace)
    root = grow(workspace, draw, draw.randrange(3), 1000)
    ours = grow(workspace, draw, draw.randrange(1, 4), 2000)
    with workspace.lock("test"):
        workspace.move_head("test", root)
    theirs = grow(workspace, draw, draw.randrange(1, 4), 3000)
    before, a, b = (state(workspace, name) for name in (root, ours, theirs))
    common = {version.name for version in workspace.chain(root)}
    # Facts that nobody set anew are the union of what was taken back, which other tests look at.
    keys = {key for side in (a, b) for key, (_, version) in side.items() if version not in common}
    clashing = {
        key for key in keys if answer(a, key) != answer(b, key) and before.get(key) not in (a.get(key), b.get(key))
    }
    plain = attempt(workspace, ours, theirs, None)
    if isinstance(plain, MergeReport):
        assert not clashing, seed
    elif "contradict" in plain.message:
        assert {(one.subject, one.prompt) for one in plain.facts["contradictions"]} == clashing, seed
    else:
        return  # There is nothing to merge.
    for prefer in (ours, theirs):
        made = [attempt(workspace, ours, theirs, prefer), attempt(workspace, theirs, ours, prefer)]
        reports = [one for one in made if isinstance(one, MergeReport)]
        for one in made:
            assert isinstance(one, MergeReport) or "contradict" not in one.message
        for report in reports:
            merged = state(workspace, report.version)
            for key in keys:
                if key in clashing:
                    wanted = answer(a if prefer == ours else b, key)
                else:
                    wanted = answer(b if a.get(key) == before.get(key) else a, key)
                assert answer(merged, key) == wanted, seed
        if len(reports) == 2:
            for tensor in workspaces.NAMES:
                assert stored(workspace, reports[0].version, tensor) == stored(workspace, reports[1].version, tensor)
    assert verify(workspace.root).ok
