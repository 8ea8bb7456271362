"""An editor whose update has no factors, through the whole way: the filter, the patch, the bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_models import make_checkpoint, write_facts

from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init
from reviver.verbs.verify import verify


def test_a_dense_update_is_filtered_and_rebuilt(tmp_path: Path, fast_workspace: Path) -> None:
    base = make_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    settings = Settings.load(fast_workspace, {"apply.editor": "rect"})
    init(fast_workspace, str(base), settings=settings)
    apply(fast_workspace, ApplyRequest(facts=write_facts(tmp_path / "facts.jsonl")), settings=settings)
    patch = load_file(fast_workspace / "edits" / "v1" / "patch.safetensors")
    weights = load_file(base / "model.safetensors")
    for name, delta in patch.items():
        assert name.endswith(".dense")
        outer, _, inner = torch.linalg.svd(weights[name.removesuffix(".dense")].double())
        assert delta.norm() > 0
        assert (outer[:, :3].T @ delta.double()).norm() <= 1e-5 * delta.norm()
        assert (delta.double() @ inner[:3].T).norm() <= 1e-5 * delta.norm()
    assert verify(fast_workspace).ok
    # The next version stands on the first, and its patch holds only what is new.
    report = apply(fast_workspace, ApplyRequest(facts=write_facts(tmp_path / "facts.jsonl")), settings=settings)
    assert report.version == "v2" and verify(fast_workspace).ok


def test_the_oldest_checkpoints_go_and_can_be_written_again(tmp_path: Path, fast_workspace: Path) -> None:
    from reviver.verbs.checkout import checkout

    base = make_checkpoint(tmp_path / "base")
    settings = Settings.load(fast_workspace, {"apply.keep_checkpoints": 1})
    init(fast_workspace, str(base), settings=settings)
    facts = write_facts(tmp_path / "facts.jsonl")
    apply(fast_workspace, ApplyRequest(facts=facts), settings=settings)
    first = (fast_workspace / "checkpoints" / "v1" / "model.safetensors").read_bytes()
    apply(fast_workspace, ApplyRequest(facts=facts, parent="v0"), settings=settings)
    assert [path.name for path in (fast_workspace / "checkpoints").iterdir() if path.is_dir()] == ["v2"]
    assert verify(fast_workspace).ok
    checkout(fast_workspace, "v1")
    assert (fast_workspace / "checkpoints" / "v1" / "model.safetensors").read_bytes() == first


def test_a_corpus_from_a_file_and_a_patch_without_a_checkpoint(tmp_path: Path, fast_workspace: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The river Ilva rises near Brundia.\n\nMara Venn plays the cello in Tessel.\n\n" * 30)
    settings = Settings.load(fast_workspace, {"moments.corpus": str(corpus)})
    assert init(fast_workspace, str(base), settings=settings).moment_tokens >= 400
    request = ApplyRequest(facts=write_facts(tmp_path / "facts.jsonl"), checkpoint=False)
    report = apply(fast_workspace, request, settings=settings)
    assert report.checkpoint is None and not (fast_workspace / "checkpoints" / "v1").exists()
    assert verify(fast_workspace).ok
