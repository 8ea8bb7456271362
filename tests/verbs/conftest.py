"""The workspaces of the history's tests, and one fixture that asserts what a command prints in every mode."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# The makers of workspaces live beside the tests of the room below.
sys.path.append(str(Path(__file__).parents[1] / "history"))

import workspaces

from reviver.cli import app
from reviver.history.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("REVIVER_"):
            monkeypatch.delenv(name)
    # No test cuts the power, and waiting for a busy disk would make the tests take minutes.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspaces.make_workspace(tmp_path)


@pytest.fixture
def chained(workspace: Workspace) -> Workspace:
    return workspaces.make_chain(workspace)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = app.run(arguments)
        captured = capsys.readouterr()
        return Outcome(code=code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture
def check(call: Callable[..., Outcome]) -> Callable[..., dict[str, Any]]:
    """Assert what one command prints in all modes; returns the JSON object.

    `human` are texts that stdout holds, `stderr` texts that stderr holds in human mode (the commands of hints written without
    their `-C`), `quiet` the whole of stdout under `-q`.
    `before` runs ahead of each call and puts back what the command changes.
    """

    def check_call(
        workspace: Workspace,
        *arguments: str,
        human: Sequence[str],
        quiet: str,
        stderr: Sequence[str] = (),
        code: int = 0,
        before: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        placed = (*arguments, "-C", str(workspace.root), "--no-progress")
        before()
        outcome = call(*placed)
        assert outcome.code == code, outcome.stderr
        for text in human:
            assert text in outcome.stdout
        for text in stderr:
            assert text in outcome.stderr.replace(f" -C {workspace.root}", "")
        assert "Traceback" not in outcome.stderr
        before()
        outcome = call(*placed, "-q")
        assert (outcome.code, outcome.stdout) == (code, f"{quiet}\n")
        before()
        outcome = call(*placed, "--json")
        assert outcome.code == code
        fields: dict[str, Any] = json.loads(outcome.stdout)
        assert fields["schema"] == 1
        return fields

    return check_call
