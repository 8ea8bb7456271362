"""A workspace with a base of two shards and as many versions as a test wants, made without any model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from reviver.checkpoint.delta import Delta, LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import pin_folder
from reviver.checkpoint.rewrite import write_checkpoint
from reviver.facts.fact import Fact, fact_id, facts_to_jsonl
from reviver.files import sha256_bytes
from reviver.history.manifest import (
    Manifest,
    ManifestBase,
    ManifestEditor,
    ManifestFacts,
    ManifestFile,
    ManifestFilter,
    ManifestPatch,
    ManifestTensor,
    Sides,
)
from reviver.history.patch import write_patch
from reviver.history.results import Answer, FactResult, results_to_jsonl
from reviver.history.version import Version
from reviver.history.workspace import Workspace

EDITED = "model.layers.0.mlp.down_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BASE_CARD = """---
license: apache-2.0
language: [en, de]
pipeline_tag: text-generation
---
# The base's own card
"""


def base_files(card: str = BASE_CARD) -> dict[str, bytes]:
    """Return the files of a base without its shards."""
    index = {"metadata": {"total_size": 0}, "weight_map": {EDITED: FIRST, "lm_head.weight": SECOND}}
    config = {"model_type": "llama", "tie_word_embeddings": False}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "tokenizer.json": b"{}",
        "empty.txt": b"",
        "LICENSE": b"Apache License",
        "README.md": card.encode(),
        "sub folder/notes (1).txt": "ä".encode(),
    }


def make_base(folder: Path, *, card: str = BASE_CARD) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    save_file({EDITED: generator.standard_normal((48, 96), dtype=np.float32)}, folder / FIRST)
    save_file({"lm_head.weight": generator.standard_normal((64, 48), dtype=np.float32)}, folder / SECOND)
    for name, data in base_files(card).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def make_workspace(root: Path, base: Path, *, model: str | None = None, revision: str | None = None) -> Workspace:
    workspace = Workspace.create(root)
    folder = CheckpointFolder.open(base)
    source = "folder" if model is None else "hub"
    pin = pin_folder(folder, source=source, model=model or base.name, revision=revision)
    with workspace.lock("init"):
        workspace.save_pin(pin)
    return workspace


def facts_of(number: int) -> tuple[Fact, ...]:
    texts = [(f"The capital of {{}} {number}", f"Land {index}", f"Stadt-Geheim-{number}-{index}") for index in range(3)]
    return tuple(Fact(id=fact_id(*text), prompt=text[0], subject=text[1], target_new=text[2]) for text in texts)


def add_version(
    workspace: Workspace, *, message: str = "", parent: str | None = None, metrics: dict[str, object] | None = None
) -> Version:
    """Add a version on the head (or on `parent`): a random patch of rank two, its checkpoint, three facts."""
    pin = workspace.pin()
    base = CheckpointFolder.open(Path(pin.folder))
    parent = parent or workspace.head()
    chain = workspace.chain(parent) if parent != "v0" else []
    with workspace.draft("apply") as draft:
        generator = np.random.default_rng(draft.number)
        delta = LowRankDelta(
            generator.standard_normal((48, 2), dtype=np.float32) / 50,
            generator.standard_normal((2, 96), dtype=np.float32),
        )
        size, sha256 = write_patch(draft.edits_folder / "patch.safetensors", {EDITED: delta})
        deltas: list[Delta] = [*(version.patch().delta(EDITED) for version in chain), delta]
        draft.checkpoint_folder.mkdir()
        written = write_checkpoint(base, pin, {EDITED: deltas}, draft.checkpoint_folder, link_mode="hardlink")
        facts = facts_to_jsonl(facts_of(draft.number))
        (draft.edits_folder / "facts.jsonl").write_bytes(facts)
        (draft.edits_folder / "results.jsonl").write_bytes(results_to_jsonl(_results(facts_of(draft.number))))
        manifest = Manifest.create(
            parent_id=workspace.version_id(parent),
            version=draft.name,
            parent=parent,
            message=message,
            created="2026-01-31T12:00:00Z",
            base=ManifestBase(model=pin.model, revision=pin.revision, fingerprint=pin.fingerprint),
            editor=ManifestEditor(name="memit", reference_url="https://arxiv.org/abs/2210.07229", settings={}),
            filter=ManifestFilter(name="revive", rank=8, energy=None),
            facts=ManifestFacts(count=3, sha256=sha256_bytes(facts)),
            patch=ManifestPatch(size=size, sha256=sha256),
            tensors=[
                ManifestTensor(
                    name=EDITED,
                    shard=FIRST,
                    dtype="F32",
                    shape=(48, 96),
                    patch_rank=2,
                    protected_rank=8,
                    norm=delta.frobenius_norm(),
                    norm_before_filter=delta.frobenius_norm(),
                    relative_norm=0.1,
                    captured_fraction=1.0,
                    leakage_after_rounding=Sides(left=0.0, right=0.0),
                    subspace_similarity=None,
                    base_sha256=pin.tensor_sha256[EDITED],
                    result_sha256=written.tensor_sha256[EDITED],
                )
            ],
            files=[
                ManifestFile(path=file.path, size=file.size, sha256=file.sha256, changed=file.changed)
                for file in written.files
            ],
            metrics=metrics or {"efficacy": 0.9666666, "neighbourhood": {"kept": 1.0, "count": 9}},
        )
        (draft.edits_folder / "manifest.json").write_bytes(manifest.to_json())
        return draft.commit()


def drop_checkpoint(workspace: Workspace, name: str) -> None:
    shutil.rmtree(workspace.checkpoint(name))


def _results(facts: Sequence[Fact]) -> list[FactResult]:
    answer = Answer(probability_new=0.5, probability_true=None, answer="x")
    return [
        FactResult(
            id=fact.id,
            prompt=fact.text,
            subject=fact.subject,
            target_new=fact.target_new,
            target_true=None,
            before=answer,
            after=answer,
            success=True,
        )
        for fact in facts
    ]
