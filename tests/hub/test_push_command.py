"""`reviver push` as a person runs it: another process, the environment's token and endpoint, three forms of output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_fake import READER, WRITER, FakeHub
from small_workspace import FIRST, add_version, make_base, make_workspace

from reviver.history.workspace import Workspace


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def local(tmp_path: Path) -> Workspace:
    workspace = make_workspace(tmp_path / "work", make_base(tmp_path / "base"))
    add_version(workspace, message="correct \x1b[31mthe [bold]capitals[/bold]")
    return workspace


def run(hub: FakeHub, local: Workspace, *arguments: str, token: str | None = WRITER, **variables: str) -> Outcome:
    """Run the command; no token may ever be in what it says."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "REVIVER"))
    }
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(local.root.parent / "hf"), "HF_HUB_DISABLE_XET": "1"}
    if token is not None:
        environment["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-m", "reviver", "push", *arguments, "-C", str(local.root)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not re.search("hf_[a-z]", done.stdout + done.stderr)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_from_plan_to_publication(hub, local):
    planned = run(hub, local, "alice/edited", "--dry-run")
    assert planned.code == 0, planned.stderr
    assert "would push v1 to alice/edited (new, private)" in planned.stdout
    assert FIRST in planned.stdout and "to send" in planned.stdout
    assert "hint: run it without `--dry-run`" in planned.stderr
    assert hub.writes == []

    done = run(hub, local, "alice/edited", "--json", "--base-model", "org/origin")
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    repository = hub.repositories["alice/edited"]
    assert report["schema"] == 1
    assert report["commit"] == repository.head.oid
    assert report["done"] is True and report["private"] is True and report["dry_run"] is False
    assert {one["path"] for one in report["operations"]} == set(repository.files) - {".gitattributes"}
    assert set(report) == {
        "schema",
        "repository",
        "url",
        "version",
        "dry_run",
        "done",
        "created",
        "private",
        "commit",
        "replaces",
        "facts_included",
        "operations",
        "bytes_added",
        "bytes_copied",
        "bytes_kept",
        "warnings",
    }

    again = run(hub, local, "--base-model", "org/origin")
    assert (again.code, again.stdout) == (0, f"v1 is already at {hub.url}/alice/edited\n")
    short = run(hub, local, "-q", "--base-model", "org/origin")
    assert (short.code, short.stdout, short.stderr) == (0, f"{repository.head.oid}\n", "")

    more = run(hub, local, "--include-facts", "-m", "with the facts")
    assert more.code == 0, more.stderr
    assert "edits/v1/facts.jsonl" in more.stdout and "there already" in more.stdout
    assert "warning: the card names no base model" in more.stderr
    assert "\x1b" not in more.stdout + more.stderr
    assert repository.head.title == "with the facts"


@pytest.mark.parametrize(
    ("arguments", "token", "variables", "code", "words"),
    [
        (["alice/edited"], None, {}, 1, "no Hugging Face token was found"),
        (["alice/edited"], READER, {"REVIVER_DEBUG": "1"}, 1, "may not do this"),
        (["alice/edited"], WRITER, {"HF_HUB_OFFLINE": "1"}, 1, "offline mode is on"),
        ([], WRITER, {}, 2, "no repository was named"),
    ],
)
def test_what_can_be_wrong_is_one_line_and_one_hint(hub, local, arguments, token, variables, code, words):
    done = run(hub, local, *arguments, token=token, **variables)
    assert (done.code, done.stdout) == (code, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ") and words in lines[0]
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2 or "REVIVER_DEBUG" in variables
    assert hub.repositories == {}
