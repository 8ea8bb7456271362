"""A version that answers with NaN is not made, whatever its weights look like; the rounds that were done are not lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FACTS, make_checkpoint, write_facts

from reviver.cli import app
from reviver.editing import session
from reviver.editing.model import EditableModel
from reviver.evaluation.outcomes import Observation, observe
from reviver.facts.fact import Fact
from reviver.verbs import edit


def test_nothing_is_committed_and_finished_rounds_are_kept(
    fast_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a sum overflows in float16 on the edited weights alone."""
    options = ["-C", str(fast_workspace), "-q"]
    assert app.run(["init", str(make_checkpoint(tmp_path / "base")), *options]) == 0
    command = ["apply", str(write_facts(tmp_path / "facts.jsonl")), "--round-size", "1", *options]
    calls: list[int] = []

    def overflowing(model: EditableModel, facts: Sequence[Fact]) -> list[Observation]:
        calls.append(1)
        if len(calls) == 1:
            return observe(model, facts)

        def overflow(_module: object, _arguments: object, output: torch.Tensor) -> torch.Tensor:
            return output * float("inf")

        handle = model.network.get_output_embeddings().register_forward_hook(overflow)
        try:
            return observe(model, facts)
        finally:
            handle.remove()

    with monkeypatch.context() as patched:
        patched.setattr(edit, "observe", overflowing)
        capsys.readouterr()
        assert app.run([*command, "--json"]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["type"] == "NumericsError" and "NaN or infinity" in error["message"]
    assert "--dtype" in error["hint"] and "--round-size" in error["hint"]
    assert not [*(fast_workspace / "edits").glob("v*"), *(fast_workspace / "checkpoints").glob("v*")]
    rounds: list[int] = []
    plain = session.run_round

    def counted(*arguments: Any, **named: Any) -> Any:
        rounds.append(1)
        return plain(*arguments, **named)

    monkeypatch.setattr(session, "run_round", counted)
    assert app.run(command) == 0
    assert rounds == [], f"all {len(FACTS)} were done already"
    assert (fast_workspace / "edits" / "v1").is_dir()
