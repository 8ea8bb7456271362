"""A tiny base, versions made by hand, and the bytes of a version computed in fractions."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors import TensorSpec, serialize_file

from reviver.checkpoint.delta import Delta, DenseDelta, LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin, pin_folder
from reviver.checkpoint.rewrite import write_checkpoint
from reviver.facts.fact import Fact, facts_to_jsonl
from reviver.files import sha256_bytes
from reviver.history.chain import chain_deltas
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

ROWS, COLUMNS, PROTECTED = 8, 6, 2
FIRST, SECOND = "layers.0.down.weight", "layers.1.down.weight"
NAMES = (FIRST, SECOND)
UNTOUCHED = "embed.weight"
SHARDS = {
    "model-00001-of-00003.safetensors": (UNTOUCHED,),
    "model-00002-of-00003.safetensors": (FIRST, "layers.0.norm.weight"),
    "model-00003-of-00003.safetensors": (SECOND, "layers.1.norm.weight"),
}


def bf16(values: np.ndarray) -> bytes:
    """Return float32 values cut to bfloat16 (the base's values need no particular rounding)."""
    return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()


def values_of(raw: bytes) -> np.ndarray:
    """Return bfloat16 bytes as float64."""
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)


def make_base(folder: Path, seed: int = 0) -> Path:
    """Write a bfloat16 checkpoint in three shards with the files that lie beside one."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    weight_map = {}
    total = 0
    for shard, names in SHARDS.items():
        tensors, kept = {}, []
        for name in names:
            shape = (ROWS, COLUMNS) if name in NAMES or name == UNTOUCHED else (ROWS,)
            raw = np.frombuffer(bf16(random.standard_normal(shape).astype(np.float32)), np.uint8)
            kept.append(raw)
            tensors[name] = TensorSpec(dtype="bfloat16", shape=list(shape), data_ptr=raw.ctypes.data, data_len=raw.size)
            weight_map[name] = shard
            total += raw.size
        serialize_file(tensors, str(folder / shard), {"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "tie_word_embeddings": False}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    return folder


def make_workspace(root: Path, seed: int = 0) -> Workspace:
    """Make a workspace with a pinned base, as `init` leaves it."""
    base = make_base(root / "base", seed)
    workspace = Workspace.create(root / "work")
    with workspace.lock("init"):
        pin = pin_folder(CheckpointFolder.open(base), source="folder", model="tiny/base", revision=None)
        workspace.save_pin(replace(pin, edited=NAMES))
        for name in NAMES:
            workspace.spectrum_file(name).write_bytes(b"made by a test")
            workspace.statistics_file(name).write_bytes(b"made by a test")
        workspace.record("init", {"model": "tiny/base"})
    return workspace


def make_fact(subject: str, target: str, *, true: str | None = None) -> Fact:
    """Return a fact about where a subject lies."""
    return Fact(
        id=sha256_bytes(f"{subject}/{target}".encode())[:12],
        prompt="{} lies in",
        subject=subject,
        target_new=target,
        target_true=true,
        paraphrase_prompts=(f"Where is {subject}? In",),
        neighborhood_prompts=(),
    )


def low_rank(seed: int, rank: int = 2, scale: float = 0.1) -> LowRankDelta:
    """Return a random delta in factors."""
    random = np.random.default_rng(1000 + seed)
    left = (scale * random.standard_normal((ROWS, rank))).astype(np.float32)
    return LowRankDelta(left, random.standard_normal((rank, COLUMNS)).astype(np.float32))


def dense(seed: int, scale: float = 0.1) -> DenseDelta:
    """Return a random dense delta."""
    random = np.random.default_rng(2000 + seed)
    return DenseDelta((scale * random.standard_normal((ROWS, COLUMNS))).astype(np.float32))


def add_version(
    workspace: Workspace,
    facts: Sequence[Fact],
    deltas: Mapping[str, Delta],
    *,
    parent: str | None = None,
    message: str = "",
    checkpoint: bool = True,
    link_mode: str | None = None,
) -> Version:
    """Make a version as `apply` does: facts, patch, results, checkpoint, manifest, commit."""
    with workspace.draft("apply") as draft:
        fill_draft(
            workspace, draft, facts, deltas, parent=parent, message=message, checkpoint=checkpoint, mode=link_mode
        )
        return draft.commit({"facts": len(facts)})


def make_chain(workspace: Workspace) -> Workspace:
    """v1 and v2 in a row, v3 beside v2 on v1; the head is v3."""
    rome, oslo = make_fact("Rome", "Norway"), make_fact("Oslo", "Italy", true="Norway")
    add_version(workspace, [rome, oslo], {FIRST: low_rank(1)}, message="first")
    add_version(
        workspace,
        [make_fact("Rome", "Chile"), make_fact("Lima", "Spain")],
        {FIRST: low_rank(2), SECOND: dense(2)},
        message="second",
    )
    add_version(workspace, [make_fact("Bern", "Peru")], {FIRST: low_rank(3)}, parent="v1", message="branch")
    return workspace


def fill_draft(workspace, draft, facts, deltas, *, parent=None, message="", checkpoint=True, mode=None) -> None:  # type: ignore[no-untyped-def]
    pin = workspace.pin()
    base = CheckpointFolder.open(Path(pin.folder))
    deltas = {name: filtered(base, name, delta) for name, delta in deltas.items()}
    parent = workspace.head() if parent is None else workspace.resolve(parent)
    chain = chain_deltas(workspace.chain(parent), pin)
    for name, delta in deltas.items():
        chain.setdefault(name, []).append(delta)
    raw_facts = facts_to_jsonl(facts)
    (draft.edits_folder / "facts.jsonl").write_bytes(raw_facts)
    size, sha256 = write_patch(draft.edits_folder / "patch.safetensors", deltas)
    (draft.edits_folder / "results.jsonl").write_bytes(results_to_jsonl(map(make_result, facts)))
    destination = draft.checkpoint_folder if checkpoint else None
    written = write_checkpoint(base, pin, chain, destination, link_mode=mode)
    manifest = Manifest.create(
        parent_id=workspace.version_id(parent),
        version=draft.name,
        parent=parent,
        message=message,
        base=ManifestBase(model=pin.model, revision=pin.revision, fingerprint=pin.fingerprint),
        editor=ManifestEditor(name="memit", reference_url="https://arxiv.org/abs/2210.07229", settings={"steps": 25}),
        filter=ManifestFilter(name="revive", rank=PROTECTED, energy=None),
        facts=ManifestFacts(count=len(facts), sha256=sha256_bytes(raw_facts)),
        patch=ManifestPatch(size=size, sha256=sha256),
        tensors=[
            describe(base, pin, name, delta, chain[name], written.tensor_sha256[name]) for name, delta in deltas.items()
        ],
        files=[
            ManifestFile(path=file.path, size=file.size, sha256=file.sha256, changed=file.changed)
            for file in written.files
        ],
        metrics={"efficacy": 1.0},
        rounds=[{"facts": [fact.id for fact in facts], "seed": 0}],
        environment={"reviver": "test"},
        timings={"total": 0.5},
    )
    (draft.edits_folder / "manifest.json").write_bytes(manifest.to_json())


def filtered(base: CheckpointFolder, name: str, delta: Delta) -> Delta:
    """Return a delta without its part in the base's leading directions, by numpy's SVD."""
    outer, _, inner = np.linalg.svd(values_of(base.read_tensor(name)).reshape(ROWS, COLUMNS))
    rows = np.eye(ROWS) - outer[:, :PROTECTED] @ outer[:, :PROTECTED].T
    columns = np.eye(COLUMNS) - inner[:PROTECTED].T @ inner[:PROTECTED]
    if isinstance(delta, LowRankDelta):
        return LowRankDelta((rows @ delta.left).astype(np.float32), (delta.right @ columns).astype(np.float32))
    return DenseDelta((rows @ delta.values @ columns).astype(np.float32))


def make_result(fact: Fact) -> FactResult:
    return FactResult(
        id=fact.id,
        prompt=fact.prompt,
        subject=fact.subject,
        target_new=fact.target_new,
        target_true=fact.target_true,
        before=Answer(probability_new=0.01, probability_true=None, answer="nowhere"),
        after=Answer(probability_new=0.98, probability_true=None, answer=fact.target_new),
        success=True,
    )


def product(delta: Delta) -> np.ndarray:
    """Return a delta as a float64 matrix, without the code under test."""
    if isinstance(delta, LowRankDelta):
        return np.einsum("ir,rj->ij", np.asarray(delta.left, np.float64), np.asarray(delta.right, np.float64))
    return np.asarray(delta.values, np.float64)


def describe(
    base: CheckpointFolder, pin: BasePin, name: str, delta: Delta, chain: Sequence[Delta], sha256: str
) -> ManifestTensor:
    entry = base.tensors[name]
    raw = base.read_tensor(name)
    matrix = product(delta)
    norm = float(np.linalg.norm(matrix))
    step = values_of(exact_bytes(raw, chain)) - values_of(exact_bytes(raw, chain[:-1]))
    return ManifestTensor(
        name=name,
        shard=entry.shard,
        dtype=entry.dtype,
        shape=(ROWS, COLUMNS),
        patch_rank=delta.rank if isinstance(delta, LowRankDelta) else None,
        protected_rank=PROTECTED,
        norm=norm,
        norm_before_filter=2 * norm,
        relative_norm=norm / float(np.linalg.norm(values_of(raw))),
        captured_fraction=float(step @ matrix.ravel()) / norm**2,
        leakage_after_rounding=Sides(left=0.01, right=0.02),
        subspace_similarity=Sides(left=0.999, right=0.998),
        base_sha256=pin.tensor_sha256[name],
        result_sha256=sha256,
    )


def exact_bytes(base: bytes, deltas: Sequence[Delta]) -> bytes:
    """Return bfloat16 bytes of base + deltas: each entry summed in fractions and rounded once, half to even."""
    result = bytearray()
    flat = values_of(base)
    for index, value in enumerate(flat):
        row, column = divmod(index, COLUMNS)
        total = Fraction(float(value))
        for delta in deltas:
            if isinstance(delta, LowRankDelta):
                for component in range(delta.rank):
                    left, right = float(delta.left[row, component]), float(delta.right[component, column])
                    total += Fraction(left) * Fraction(right)
            else:
                total += Fraction(float(delta.values[row, column]))
        result += struct.pack("<f", _round(total, 8))[2:]
    return bytes(result)


def _round(value: Fraction, digits: int) -> float:
    """Round to `digits` binary digits, half to even (normal numbers only)."""
    if value == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(value)))
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - digits + 1)
    return float(round(value / unit) * unit)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
