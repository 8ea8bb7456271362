"""The entries of a version's manifest and results, made from what an `apply` measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

import reviver
from reviver.checkpoint.rewrite import WrittenCheckpoint
from reviver.editing.diagnostics import diagnose
from reviver.editing.layer import EditedLayer
from reviver.editing.model import EditableModel
from reviver.editing.preparation import Preparation
from reviver.editing.rounds import RoundRecord
from reviver.evaluation.outcomes import Observation, Summary
from reviver.facts.fact import Fact
from reviver.history.manifest import ManifestTensor, Sides
from reviver.history.results import Answer, FactResult
from reviver.settings import TargetsSection


def tensor_entry(
    preparation: Preparation, edited: EditedLayer, parent_DE: Tensor, result_DE: Tensor, written: WrittenCheckpoint
) -> ManifestTensor:
    """Return what became of one edited tensor, measured on the values as stored.

    Args:
        preparation: the base's spectral bases.
        edited: the tensor with its sums.
        parent_DE: the parent version's values.
        result_DE: this version's values.
        written: for the hash of the bytes.
    """
    name = edited.name
    entry = preparation.folder.entry(name)
    measured = diagnose(
        edited.total,
        edited.unfiltered,
        base_DE=edited.base_DE,
        parent_DE=parent_DE,
        result_DE=result_DE,
        base_basis=preparation.basis(name, max(1, preparation.basis_width(name)), result_DE.device),
        rank=edited.rank,
    )
    leakage = measured.leakage_after_rounding
    return ManifestTensor(
        name=name,
        shard=entry.shard,
        dtype=entry.dtype,
        shape=(entry.shape[0], entry.shape[1]),
        patch_rank=edited.total.rank,
        protected_rank=edited.rank,
        norm=measured.norm,
        norm_before_filter=measured.norm_before_filter,
        relative_norm=measured.relative_norm,
        captured_fraction=measured.captured_fraction,
        leakage_after_rounding=None if leakage is None else Sides(left=leakage[0], right=leakage[1]),
        subspace_similarity=Sides(left=measured.subspace_similarity[0], right=measured.subspace_similarity[1]),
        base_sha256=preparation.pin.tensor_sha256[name],
        result_sha256=written.tensor_sha256[name],
    )


def round_entry(record: RoundRecord, prefixes: Sequence[str], settings: TargetsSection) -> dict[str, object]:
    """Return what one round did, and what is needed to do it again."""
    entry: dict[str, object] = {} if record.components == record.facts else {"components": list(record.components)}
    return {
        **entry,
        "facts": list(record.facts),
        "mean_loss": record.mean_loss,
        "mean_steps": record.mean_steps,
        "norms": record.norms,
        "prefixes": list(prefixes),
        "prefix_length": settings.prefix_length,
        "seed": settings.seed,
    }


def result_of(fact: Fact, before: Observation, after: Observation) -> FactResult:
    """Return what became of one fact."""

    def answer(one: Observation) -> Answer:
        return Answer(probability_new=one.probability_new, probability_true=one.probability_true, answer=one.answer)

    return FactResult(
        id=fact.id,
        prompt=fact.prompt,
        subject=fact.subject,
        target_new=fact.target_new,
        target_true=fact.target_true,
        before=answer(before),
        after=answer(after),
        success=after.said_new,
        known=before.said_new,
        paraphrases={"before": before.paraphrases, "after": after.paraphrases} if after.paraphrases else None,
        neighbors={"before": before.neighbors, "after": after.neighbors} if after.neighbors else None,
    )


def metrics_of(summary: Summary) -> dict[str, object]:
    """Return the shares that could be measured."""
    return {key: value for key, value in asdict(summary).items() if value is not None}


def environment_of(model: EditableModel) -> dict[str, object]:
    """Return what the numbers may depend on: versions, device, dtype, threads; no paths, no names of machines."""
    import transformers

    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.machine()
    return {
        "reviver": reviver.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{model.device.type}: {device}",
        "dtype": str(model.network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
