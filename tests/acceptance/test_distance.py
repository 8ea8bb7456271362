"""An `apply` warns where all versions together have moved a tensor far from the base."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_models import FACTS, make_checkpoint, write_facts

import reviver.verbs.apply as verb
from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init


def distances(base: Path, version: Path, names: list[str]) -> dict[str, float]:
    """Return ‖W - W_0‖ / ‖W_0‖ of what is on disk, in float64."""
    before, after = load_file(base / "model.safetensors"), load_file(version / "model.safetensors")
    found = {}
    for name in names:
        old, new = before[name].double().numpy(), after[name].double().numpy()
        found[name] = float(np.linalg.norm(new - old) / np.linalg.norm(old))
    return found


def test_the_farthest_tensor_is_told_once_all_versions_together_are_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_checkpoint(tmp_path / "base")
    folder = tmp_path / "workspace"
    settings = Settings.load(
        folder,
        {
            "apply.device": "cpu",
            "apply.filter": "none",
            "apply.maximum_relative_norm": 1e6,
            "targets.steps": 4,
            "targets.prefixes": 0,
            "moments.tokens": 400,
            "moments.length": 32,
            "moments.weight": 0.01,
        },
    )
    init(folder, str(base), settings=settings)
    moved: dict[str, float] = {}
    warned = []
    for number, record in enumerate(FACTS[:2], start=1):
        facts = write_facts(tmp_path / "facts.jsonl", (record,))
        # The second patch alone would not be far.
        monkeypatch.setattr(verb, "FAR", max(moved.values(), default=1e6))
        report = apply(folder, ApplyRequest(facts=facts), settings=settings)
        moved = distances(base, folder / "checkpoints" / f"v{number}", [one.name for one in report.tensors])
        warned.append(report.warnings)
    assert max(moved.values()) > verb.FAR > max(one.relative_norm for one in report.tensors)
    assert warned[0] == ()
    (text,) = warned[1]
    told = re.fullmatch(r"all versions together have moved `(\S+)` by ([\d.]+) times its norm: .*", text)
    assert told is not None
    assert told[1] == max(moved, key=lambda name: moved[name])
    assert float(told[2]) == pytest.approx(moved[told[1]], abs=0.051)
