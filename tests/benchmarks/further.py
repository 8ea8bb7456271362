"""A new release of the packaged model: its weights after some more training, on its own world or on one where facts changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from patient import MODEL
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from reviver.demo.recipe.corpus import held_out_sentences, mixture, rows
from reviver.demo.recipe.prose import Prose
from reviver.demo.recipe.train import Settings, fit, save
from reviver.demo.recipe.world import World, fact_sentences, make_world

REPEATS = 6
"""How often a changed fact is said for once that another one is: a release that brings news has read a lot of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What decides the new release.

    Attributes:
        steps: of the optimizer, 1,024 tokens each.
        peak_rate: of the learning rate; the packaged model was trained with 2e-3.
        seed: of the text, which is drawn anew.
    """

    steps: int = 300
    peak_rate: float = 3e-4
    seed: int = 1


def train_further(
    folder: Path,
    training: Training,
    changed: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the packaged model further by its own recipe, and save it to `folder` in bfloat16.

    Args:
        folder: where to; made if need be.
        training: how long and how fast.
        changed: what facts of the world say now, by their ids.
        report: told the loss at times.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    settings = Settings(
        seed=training.seed, steps=training.steps, row_length=128, peak_rate=training.peak_rate, compiled=False
    )
    rng = random.Random(f"further {training.seed}")
    prose = Prose(rng)
    world = changed_world(make_world(Settings.seed), changed or {})
    # The packaged model's held-out text stays unread.
    texts = mixture(fact_sentences(world, rng), prose, prose.document, held_out_sentences(Settings.seed), rng)
    data = rows(texts, tokenizer, settings.row_length, settings.steps * settings.rows_per_step, settings.seed)
    fit(model, model, data.batches(settings.rows_per_step), settings, report)
    save(model, tokenizer, folder)


def changed_world(world: World, changed: Mapping[str, str]) -> World:
    """Return the world with other targets of some facts, which are said more often."""
    news = [
        replace(fact, target=changed[fact.identifier]) for fact in world.facts if fact.identifier in changed
    ] * REPEATS
    kept = [fact for fact in world.facts if fact.identifier not in changed]
    return replace(world, facts=(*kept, *news))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How far a tensor is from the packaged model's.

    Attributes:
        relative_norm: of the difference, over that of the packaged tensor.
        entries: share of the stored values that differ.
    """

    relative_norm: float
    entries: float


def changes(folder: Path) -> dict[str, Change]:
    """Compare every tensor of a release with the packaged model's, by name."""
    first, second = load_file(MODEL / "model.safetensors"), load_file(folder / "model.safetensors")
    return {
        name: Change(
            relative_norm=float((second[name].double() - old.double()).norm() / old.double().norm()),
            entries=float((second[name] != old).double().mean()),
        )
        for name, old in first.items()
    }
