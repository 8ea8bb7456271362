"""Blocks that do not lie on the device, from the command line: the same bytes, a plan that says so, and a refusal in time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_checkpoint, write_facts

from reviver.cli import app
from reviver.editing import devices
from reviver.text import human_bytes


def _run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    code = app.run([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.err == ""
    fields: dict[str, Any] = json.loads(printed.out)
    return fields


def _derived(workspace: Path) -> Mapping[str, bytes]:
    return {
        path.relative_to(workspace).as_posix(): path.read_bytes()
        for kind in ("statistics", "spectra")
        for path in (workspace / ".reviver" / kind).rglob("*.safetensors")
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base", "llama", shard_size="40KB")


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return write_facts(tmp_path / "facts.jsonl")


@pytest.fixture
def prepared(base: Path, fast_workspace: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    _run(capsys, "init", base, fast_workspace, "--layers", "1,2")
    return fast_workspace


def test_init_writes_the_same_with_blocks_on_disk(
    base: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(prepared / "reviver.toml", other)
    report = _run(capsys, "init", base, other, "--layers", "1,2", "--offload", "always")
    assert "of 4 blocks 2 on disk come to the device each time they run, which is slow" in report["warnings"]
    assert _derived(other) == _derived(prepared) and _derived(other)


@pytest.mark.parametrize("editor", ["memit", "ultraedit"])
def test_apply_writes_the_same_with_blocks_on_disk(
    editor: str,
    prepared: Path,
    facts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    whole = _run(capsys, "apply", facts, "-C", prepared, "--editor", editor)
    parted = _run(capsys, "apply", facts, "-C", other, "--editor", editor, "--offload", "always")
    assert whole["plan"]["memory"]["placement"] == {"in_memory": [], "on_disk": []}
    assert parted["plan"]["memory"]["placement"] == {"in_memory": [], "on_disk": [0, 3]}
    assert parted["id"] == whole["id"] and parted["results"] == whole["results"]
    for name in ("patch.safetensors", "results.jsonl"):
        assert (other / "edits" / "v1" / name).read_bytes() == (prepared / "edits" / "v1" / name).read_bytes()
    # The other commands take the setting from where settings come from.
    asked = [_run(capsys, "ask", "The capital of Orvania is", "v0", "v1", "-C", other)]
    monkeypatch.setenv("REVIVER_APPLY_OFFLOAD", "always")
    asked.append(_run(capsys, "ask", "The capital of Orvania is", "v0", "v1", "-C", other))
    assert asked[0] == asked[1]


def test_what_does_not_fit_goes_to_disk_and_what_does_not_fit_there_is_refused(
    prepared: Path, facts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(*options: str) -> int:
        plan = _run(capsys, "apply", facts, "-C", prepared, "--dry-run", *options)["plan"]
        return int(plan["memory"]["needed"])

    whole, least = needed(), needed("--offload", "always")
    assert least < whole
    monkeypatch.setattr(devices, "host_memory", lambda: (None, whole - 1))
    capsys.readouterr()
    assert app.run(["apply", str(facts), "-C", str(prepared), "--no-progress"]) == 0
    # One block away would gain nothing: the room that it comes to is needed too.
    note = "of 4 blocks 2 on disk come to the device each time they run, which is slow"
    assert note in capsys.readouterr().err

    monkeypatch.setattr(devices, "host_memory", lambda: (None, 100 * 1024**2))
    assert app.run(["apply", str(facts), "-C", str(prepared), "--no-progress"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: about {human_bytes(whole)} of memory are needed and 100.0 MiB are free\n" in printed.err
    assert "hint: free some memory, or use a machine with about " in printed.err
    assert not (prepared / "edits" / "v2").exists()
    # A model is not loaded to be asked either.
    assert app.run(["ask", "The capital of Orvania is", "-C", str(prepared)]) == 1
    assert "of memory are needed" in capsys.readouterr().err
