"""Checkpoints of several shards, in half precision: which files are new, and which bytes they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from exact import exact_sum
from safetensors.torch import load_file, save_file
from tiny_models import FACTS, make_checkpoint, write_facts

from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init
from reviver.verbs.verify import verify


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_three_versions_equal_the_sum_in_one_go(dtype: torch.dtype, tmp_path: Path, fast_workspace: Path) -> None:
    base = make_checkpoint(tmp_path / "base", dtype=dtype, shard_size="28KB")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) >= 4
    settings = Settings.load(fast_workspace, {"apply.link_mode": "hardlink"})
    init(fast_workspace, str(base), settings=settings)
    factors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for number, record in enumerate(FACTS, 1):
        facts = write_facts(tmp_path / f"{number}.jsonl", (record,))
        report = apply(fast_workspace, ApplyRequest(facts=facts), settings=settings)
        assert report.version == f"v{number}"
        patch = load_file(fast_workspace / "edits" / f"v{number}" / "patch.safetensors")
        for tensor in report.tensors:
            factors.setdefault(tensor.name, []).append((patch[f"{tensor.name}.left"], patch[f"{tensor.name}.right"]))

    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    changed = {index[name] for name in factors}
    assert 0 < len(changed) < len(shards)
    checkpoint = fast_workspace / "checkpoints" / "v3"
    for shard in shards:
        same = (checkpoint / shard).stat().st_ino == (base / shard).stat().st_ino
        assert same == (shard not in changed)
        # What the library would have written for the changed tensors, whose values come from rational arithmetic.
        tensors = load_file(base / shard)
        for name in tensors.keys() & factors.keys():
            tensors[name] = exact_sum(tensors[name], factors[name])
        expected = tmp_path / "expected.safetensors"
        save_file(tensors, expected, metadata={"format": "pt"})
        assert (checkpoint / shard).read_bytes() == expected.read_bytes()
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            assert (checkpoint / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in base.iterdir()}
    assert verify(fast_workspace).ok
