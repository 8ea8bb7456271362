"""Models to measure on: the packaged one, and random Llamas of the shape of 8B and of a tiny one, for one and the same script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from patient import FACTS, MODEL, draw
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.architecture import FAMILIES, disk_name, find_family, model_shape
from reviver.editing.corpus import WrittenCorpus
from reviver.editing.model import EditableModel, load_model
from reviver.editing.prefixes import write_prefixes
from reviver.editing.presets import Preset, derive_preset, find_preset
from reviver.editing.targets import TargetSettings
from reviver.facts.fact import Fact

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 224,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 512,
    },
}
"""Llama 3 8B, and the same in small."""


class Texts:
    """Batches of token rows, as a corpus."""

    def __init__(self, kept: Sequence[Sequence[Sequence[int]]]) -> None:
        self.kept = kept
        self.tokens = sum(len(row) for batch in kept for row in batch)

    def describe(self) -> dict[str, object]:
        """Return how much there is."""
        return {"tokens": self.tokens}

    def batches(self, model: EditableModel, first: int, step: int = 1) -> Iterator[Sequence[Sequence[int]]]:
        """Yield batch `first` and every `step`-th after it."""
        yield from self.kept[first::step]


@dataclass(frozen=True)
class Subject:
    """What is measured on.

    Attributes:
        trained: whether the weights are those of a trained model.
        model: the model.
        preset: its preset.
        prefixes: texts before the prompts.
        settings: how targets are sought.
    """

    trained: bool
    model: EditableModel
    preset: Preset
    prefixes: tuple[str, ...]
    settings: TargetSettings

    def texts(self, tokens: int, rows: int = 0) -> Texts:
        """Return at least so many tokens of text: the model's own where it was trained, else random, in rows of 512 at most."""
        length, rows = min(512, self.model.window), rows or (8 if self.model.device.type == "cpu" else 32)
        batches: list[Sequence[Sequence[int]]] = []
        written = WrittenCorpus(seed=0, length=length, rows=rows).batches(self.model, 0)
        generator = torch.Generator().manual_seed(0)
        size = len(self.model.tokenizer)
        while sum(len(row) for batch in batches for row in batch) < tokens:
            drawn = torch.randint(0, size, (rows, length), generator=generator).tolist()
            batches.append(next(written) if self.trained else drawn)
        return Texts(batches)

    def facts(self, count: int, seed: int = 0) -> Sequence[Fact]:
        """Return facts drawn by seed; where more are wanted than there are, some come again."""
        drawn: list[Fact] = []
        while len(drawn) < count:
            drawn += draw(FACTS, min(count - len(drawn), 1000), seed + len(drawn))
        return drawn


def make_subject(shape: str, device: str, dtype: str) -> Subject:
    """Return the packaged model (`demo`), or a Llama of random weights (`8b`, `tiny`) that reads the same tokens.

    Random weights cost what trained ones cost, but for one thing: no fact is done before its last step.
    """
    wanted = {"auto": torch.float32 if device == "cpu" else torch.bfloat16}.get(dtype) or getattr(torch, dtype)
    if shape == "demo":
        folder = CheckpointFolder.open(MODEL)
        family = find_family(folder.config)
        preset = find_preset(folder.config, 1024)
        names = {layer: disk_name(family, layer, folder.tensors) for layer in preset.layers}
        model = load_model(MODEL, family, preset.layers, names, device=torch.device(device), dtype=wanted)
    else:
        config = LlamaConfig(**CONFIGURATIONS[shape], tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
        torch.manual_seed(0)
        with torch.device(device):
            network = AutoModelForCausalLM.from_config(config, dtype=wanted)
        network.eval().requires_grad_(False)
        described = {"model_type": "llama", **CONFIGURATIONS[shape]}
        preset = (
            find_preset(described, config.intermediate_size)
            if shape == "8b"
            else derive_preset(model_shape(described), config.intermediate_size)
        )
        model = EditableModel(
            network=network,
            tokenizer=AutoTokenizer.from_pretrained(MODEL, local_files_only=True),
            family=FAMILIES["llama"],
            layers=preset.layers,
            names={layer: FAMILIES["llama"].suffix(layer) for layer in preset.layers},
            device=torch.device(device),
        )
    prefixes = write_prefixes(model, count=5, tokens=10, seed=0)
    settings = TargetSettings(
        steps=preset.steps,
        learning_rate=preset.learning_rate,
        clamp=preset.clamp,
        weight_decay=preset.weight_decay,
        kl=preset.kl,
    )
    return Subject(shape == "demo", model, preset, prefixes, settings)
