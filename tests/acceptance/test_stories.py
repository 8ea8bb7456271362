"""A pretrained checkpoint made by others, from the command line: the filter's guarantee and every byte, proven another way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import exact_sum
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SHARED = Path(__file__).parents[2].parent / "shared"
BASE = SHARED / "models" / "stories260K"
FACTS = SHARED / "data" / "counterfact-flat.jsonl"
RANK = 8

pytestmark = pytest.mark.skipif(
    not BASE.is_dir() or not FACTS.is_file(),
    reason="the foreign checkpoint and the public facts are not beside the project",
)


def test_ten_facts_on_a_foreign_checkpoint(
    tmp_path: Path, reviver: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    facts = tmp_path / "facts.jsonl"
    with FACTS.open(encoding="utf-8") as lines:
        facts.write_text("".join(next(lines) for _ in range(10)), encoding="utf-8")
    workspace = tmp_path / "workspace"
    reviver("init", BASE, workspace)
    reviver("apply", facts, "--rank", str(RANK), "-C", workspace)
    reviver("checkout", "v1", "-o", tmp_path / "out", "-C", workspace)
    proof = json.loads(reviver("verify", "v1", "--json", "-C", workspace).stdout)
    assert proof["ok"]

    patch = load_file(workspace / "edits" / "v1" / "patch.safetensors")
    base = load_file(BASE / "model.safetensors")
    names = sorted({name.rsplit(".", 1)[0] for name in patch})
    assert len(names) >= 1
    for name in names:
        left, right = patch[f"{name}.left"].double().numpy(), patch[f"{name}.right"].double().numpy()
        delta = left @ right
        assert np.linalg.norm(delta) > 0
        outer, _, inner = np.linalg.svd(base[name].double().numpy())
        for leak in (outer[:, :RANK].T @ delta, delta @ inner[:RANK].T):
            assert np.linalg.norm(leak) / np.linalg.norm(delta) <= 1e-5
    changed = {
        name: exact_sum(tensor, [(patch[f"{name}.left"], patch[f"{name}.right"])]) if name in names else tensor
        for name, tensor in base.items()
    }
    save_file(changed, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    for folder in (tmp_path / "out", workspace / "checkpoints" / "v1"):
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
        for path in BASE.iterdir():
            if path.name != "model.safetensors":
                assert (folder / path.name).read_bytes() == path.read_bytes()
        assert {path.name for path in folder.iterdir()} == {path.name for path in BASE.iterdir()}
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, parameter in network.named_parameters():
        if name in changed:
            assert torch.equal(parameter, changed[name])
