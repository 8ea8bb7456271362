"""A history in git: a clone rebuilds every byte from the base, and two clones that made the same number meet in a merge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import FACTS, make_checkpoint, write_facts

# The makers of histories without a model live beside the tests of the history.
sys.path.append(str(Path(__file__).parents[1] / "history"))

import workspaces

from reviver.cli import app
from reviver.history.workspace import Workspace

IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str, code: int = 0) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", *IDENTITY, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def commit_all(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command line in this process and return its JSON object."""

    def call(workspace: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert app.run([*arguments, "-C", str(workspace), "--json"]) == code, capsys.readouterr().err
        fields: dict[str, Any] = json.loads(capsys.readouterr().out)
        return fields

    return call


def test_a_clone_and_the_base_give_the_same_bytes(
    tmp_path: Path, fast_workspace: Path, run: Callable[..., dict[str, Any]]
) -> None:
    base = make_checkpoint(tmp_path / "base", shard_size="28KB")
    run(fast_workspace, "init", str(base))
    for number, facts in enumerate((FACTS[:2], FACTS[2:]), start=1):
        path = write_facts(tmp_path / f"facts-{number}.jsonl", facts)
        run(fast_workspace, "apply", str(path), "-m", f"batch {number}")
    run(fast_workspace, "tag", "first", "v1")
    git(fast_workspace, "init", "-q", "-b", "main")
    commit_all(fast_workspace, "two corrections")
    committed = set(git(fast_workspace, "ls-files").splitlines())
    assert committed == {
        "reviver.toml",
        "edits/.gitattributes",
        "edits/tags.json",
        *(
            f"edits/{version}/{name}"
            for version in ("v1", "v2")
            for name in ("facts.jsonl", "manifest.json", "patch.safetensors", "results.jsonl")
        ),
    }
    assert not any(str(tmp_path).encode() in data for data in workspaces.snapshot(fast_workspace / "edits").values())

    # The base lies elsewhere on the other machine.
    moved = shutil.copytree(base, tmp_path / "elsewhere" / "base")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(fast_workspace), str(clone))
    made = run(clone, "init", str(moved))
    assert made["did"][:2] == ["pinned the base", "took up the history that was here: the head is v2"]
    for version in ("head", "first"):
        name = run(clone, "checkout", version)["version"]
        assert workspaces.snapshot(clone / "checkpoints" / name) == workspaces.snapshot(
            fast_workspace / "checkpoints" / name
        )
    assert run(clone, "verify")["ok"]
    assert git(clone, "status", "--porcelain") == ""
    for folder in ("spectra", "statistics"):
        for path in (fast_workspace / ".reviver" / folder).glob("*.safetensors"):
            ours, theirs = load_file(path), load_file(clone / ".reviver" / folder / path.name)
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-6, atol=1e-9)
    assert run(clone, "undo")["head_after"] == "v1", "without a log, the head goes back to its parent"
    assert run(clone, "redo")["head_after"] == "v2"


def test_a_clone_is_not_pinned_to_another_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = workspaces.make_chain(workspaces.make_workspace(tmp_path))
    other = make_checkpoint(tmp_path / "other")
    clone = tmp_path / "clone"
    shutil.copytree(history.edits, clone / "edits")
    before = workspaces.snapshot(clone)
    assert app.run(["init", str(other), "-C", str(clone)]) == 1
    assert "was made on another base, tiny/base" in capsys.readouterr().err
    after = workspaces.snapshot(clone)
    assert {path: after[path] for path in before} == before
    assert not (clone / ".reviver" / "base.json").exists() and not (clone / ".reviver" / "HEAD").exists()


def add(workspace: Workspace, subject: str, seed: int) -> str:
    facts = [workspaces.make_fact(subject, "Peru")]
    return workspaces.add_version(
        workspace, facts, {workspaces.FIRST: workspaces.low_rank(seed)}, message=subject, checkpoint=False
    ).id


def test_two_clones_that_both_made_one_number_meet_in_a_merge(
    tmp_path: Path, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    mine = workspaces.make_chain(workspaces.make_workspace(tmp_path))
    git(mine.root, "init", "-q", "-b", "main")
    commit_all(mine.root, "three versions")
    theirs = Workspace(tmp_path / "theirs")
    git(tmp_path, "clone", "-q", str(mine.root), str(theirs.root))
    Workspace.create(theirs.root).save_pin(mine.pin())
    shutil.copy(mine.head_file, theirs.head_file)
    my_id, their_id = add(mine, "Mine", 10), add(theirs, "Theirs", 20)
    run(theirs.root, "tag", "season", "head")
    commit_all(mine.root, "mine")
    commit_all(theirs.root, "theirs")

    # Git alone cannot: both made edits/v4.
    git(mine.root, "remote", "add", "their", str(theirs.root))
    git(mine.root, "fetch", "-q", "their")
    git(mine.root, "merge", "-q", "their/main", code=1)
    git(mine.root, "merge", "--abort")

    # What the README says to do.
    git(mine.root, "worktree", "add", "-q", "--detach", str(tmp_path / "incoming"), "their/main")
    report = run(mine.root, "import", str(tmp_path / "incoming"))
    git(mine.root, "worktree", "remove", "--force", str(tmp_path / "incoming"))
    assert [(one["was"], one["version"], one["id"]) for one in report["imported"]] == [("v4", "v5", their_id)]
    commit_all(mine.root, "import theirs")
    git(mine.root, "merge", "-q", "-s", "ours", "their/main", "-m", "merge theirs")
    assert mine.version("v4").id == my_id and mine.resolve("season") == "v5" and mine.head() == "v4"
    assert run(mine.root, "verify")["ok"]

    # The other side fast-forwards; its own version has another name now, and its head went along.
    git(theirs.root, "pull", "-q", "--ff-only", str(mine.root), "main")
    assert theirs.head() == "v5" and theirs.version("head").id == their_id
    assert theirs.version("v4").id == my_id
    assert run(theirs.root, "verify")["ok"]
    assert add(theirs, "Next", 30) == theirs.version("v6").id and theirs.version("v6").parent == "v5"
