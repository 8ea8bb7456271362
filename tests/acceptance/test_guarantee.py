"""The filter's guarantee on models that were really edited: every editor under every filter, both layouts, sums of patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FACTS, make_checkpoint, write_facts

from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init
from reviver.verbs.made import MakeChoice
from reviver.verbs.merge import merge
from reviver.verbs.revert import revert
from reviver.verbs.squash import squash
from reviver.verbs.verify import verify

EDITORS = ("memit", "rect", "prune", "alphaedit", "nse", "ultraedit")
RANK = 3
QUICK = MakeChoice(measure=False, checkpoint=False)


def leak(base: Mapping[str, torch.Tensor], patch_file: Path, rank: int = RANK) -> float:
    """Return the largest share of a patch that lies in the base's leading directions, by numpy."""
    patch = {name: values.double().numpy() for name, values in load_file(patch_file).items()}
    shares = []
    for name in {name.rpartition(".")[0] for name in patch}:
        dense = patch.get(f"{name}.dense")
        delta = patch[f"{name}.left"] @ patch[f"{name}.right"] if dense is None else dense
        outer, _, inner = np.linalg.svd(base[name].double().numpy())
        inside = np.linalg.norm(outer[:, :rank].T @ delta), np.linalg.norm(delta @ inner[:rank].T)
        shares.append(max(inside) / np.linalg.norm(delta))
    return float(max(shares))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_editor_keeps_it_under_every_filter(family: str, tmp_path: Path, fast_workspace: Path) -> None:
    base = make_checkpoint(tmp_path / "base", family, dtype=torch.bfloat16)
    facts = write_facts(tmp_path / "facts.jsonl")
    init(fast_workspace, str(base), settings=Settings.load(fast_workspace))
    made: dict[str, str] = {}
    for editor in EDITORS:
        for filter in ("none", "revive", "constrained"):
            settings = Settings.load(fast_workspace, {"apply.editor": editor, "apply.filter": filter})
            # Each filtered version stands on all others; one without a filter would carry the model too far away.
            request = ApplyRequest(facts=facts, parent="base" if filter == "none" else "head", checkpoint=False)
            made[f"{editor} {filter}"] = str(apply(fast_workspace, request, settings=settings).version)
    report = verify(fast_workspace)
    assert report.ok, report.findings
    weights = load_file(base / "model.safetensors")
    proofs = {one.version: one.guarantee for one in report.versions}
    for case, version in made.items():
        proof = proofs[version]
        assert proof is not None and proof.undetermined == 0
        expected = leak(weights, fast_workspace / "edits" / version / "patch.safetensors")
        if case.endswith("none"):
            assert (proof.tensors, proof.leak) == (0, None) and expected > 1e-4, case
        else:
            assert proof.tensors > 0 and expected < 1e-6, case
            assert proof.leak == pytest.approx(expected, rel=1e-3), case


def test_sums_of_patches_keep_it(tmp_path: Path, fast_workspace: Path) -> None:
    base = make_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    settings = Settings.load(fast_workspace)
    init(fast_workspace, str(base), settings=settings)

    def add(number: int, parent: str, **chosen: object) -> None:
        facts = write_facts(tmp_path / "facts.jsonl", (FACTS[number],))
        changed = Settings.load(fast_workspace, chosen)
        apply(fast_workspace, ApplyRequest(facts=facts, parent=parent, checkpoint=False), settings=changed)

    add(0, "base")
    add(1, "head", **{"apply.rank": 5})
    add(2, "v1", **{"apply.energy": 0.4})
    merge(fast_workspace, "v2", "v3", settings=settings, choice=QUICK)  # v4
    revert(fast_workspace, "v1", settings=settings, choice=QUICK)  # v5
    squash(fast_workspace, "base..head", settings=settings, choice=QUICK)  # v6
    add(2, "base", **{"apply.filter": "none"})
    merge(fast_workspace, "v1", "v7", settings=settings, choice=QUICK)  # v8
    report = verify(fast_workspace)
    assert report.ok, report.findings
    proofs = {one.version: one.guarantee for one in report.versions}
    weights = load_file(base / "model.safetensors")
    for version in ("v1", "v2", "v3", "v4", "v5", "v6"):
        proof = proofs[version]
        assert proof is not None and proof.tensors > 0 and proof.leak is not None
        assert leak(weights, fast_workspace / "edits" / version / "patch.safetensors") < 1e-6
    for version in ("v7", "v8"):
        assert proofs[version] is not None and proofs[version].leak is None  # type: ignore[union-attr]
