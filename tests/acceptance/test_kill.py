"""Killed at any moment, nothing is lost: the next command works, and what it makes is whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import make_checkpoint, write_facts

Run = Callable[..., subprocess.CompletedProcess[str]]


def _kill_after(seconds: float, *arguments: str | Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "reviver", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _time(reviver: Run, *arguments: str | Path) -> float:
    start = time.monotonic()
    reviver(*arguments)
    return time.monotonic() - start


def _assert_clean(reviver: Run, workspace: Path) -> None:
    """Nothing is damaged; what `status` calls leftovers is cleaned up by the next command that writes."""
    if not (workspace / ".reviver" / "base.json").exists():
        return
    status = json.loads(reviver("status", "--json", "-C", workspace).stdout)
    assert status["problems"] == [] and status["base"]["touched"] == []
    assert json.loads(reviver("verify", "--json", "-C", workspace).stdout)["ok"]


def _assert_no_leftovers(workspace: Path) -> None:
    for folder, folders, files in os.walk(workspace):
        for name in (*folders, *files):
            assert ".partial" not in name and ".tmp" not in name, f"{folder}/{name} was left behind"
    assert not (workspace / ".reviver" / "pending.json").exists()


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(3000)])])
def test_init_killed_at_random_moments(times: int, tmp_path: Path, fast_workspace: Path, reviver: Run) -> None:
    base = make_checkpoint(tmp_path / "base")
    settings = (fast_workspace / "reviver.toml").read_bytes()
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "reviver.toml").write_bytes(settings)
    duration = _time(reviver, "init", base, "-C", whole)
    moments = random.Random(0)
    for number in range(times):
        workspace = tmp_path / f"w{number}"
        workspace.mkdir()
        (workspace / "reviver.toml").write_bytes(settings)
        _kill_after(moments.uniform(0.3, 1.0) * duration, "init", base, "-C", workspace)
        _assert_clean(reviver, workspace)
        reviver("init", base, "-C", workspace)
        assert json.loads(reviver("init", base, "--json", "-C", workspace).stdout)["did"] == []
        _assert_clean(reviver, workspace)
        _assert_no_leftovers(workspace)
        for name in ("spectra", "statistics"):
            for path in (whole / ".reviver" / name).iterdir():
                assert (workspace / ".reviver" / name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(3000)])])
def test_apply_killed_at_random_moments(times: int, tmp_path: Path, fast_workspace: Path, reviver: Run) -> None:
    base = make_checkpoint(tmp_path / "base", shard_size="28KB")
    facts = write_facts(tmp_path / "facts.jsonl")
    reviver("init", base, "-C", fast_workspace)
    duration = _time(reviver, "apply", facts, "-C", fast_workspace)
    patch = (fast_workspace / "edits" / "v1" / "patch.safetensors").read_bytes()
    moments = random.Random(1)
    for _ in range(times):
        head = json.loads(reviver("status", "--json", "-C", fast_workspace).stdout)["head"]
        _kill_after(moments.uniform(0.3, 1.05) * duration, "apply", facts, "--from", "v0", "-C", fast_workspace)
        _assert_clean(reviver, fast_workspace)
        after = json.loads(reviver("status", "--json", "-C", fast_workspace).stdout)
        # The version exists wholly or not at all: the head moved to a version that verifies, or stayed.
        assert after["head"] == head or int(after["head"][1:]) > int(head[1:])
        made = json.loads(reviver("apply", facts, "--from", "v0", "--json", "-C", fast_workspace).stdout)["version"]
        assert int(made[1:]) > int(after["head"][1:])
        assert (fast_workspace / "edits" / made / "patch.safetensors").read_bytes() == patch
        _assert_clean(reviver, fast_workspace)
        _assert_no_leftovers(fast_workspace)
