"""A second reading of a checkpoint: transformers alone, in float64, one prompt at a time; and the public data to read it on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.architecture import disk_name, find_family
from reviver.editing.model import EditableModel, load_model


@dataclass(frozen=True)
class Outcome:
    """What a command line printed and how it ended."""

    code: int
    stdout: str
    stderr: str


SHARED = Path(__file__).parents[2].parent / "shared"
STORIES = SHARED / "models" / "stories260K"


def records_of(name: str, count: int) -> list[dict[str, Any]]:
    """Return the first records of a public file as they stand there."""
    path = SHARED / "data" / name
    if not path.is_file() or not STORIES.is_dir():
        pytest.skip("the public data and the foreign checkpoint are not beside the project")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(next(lines)) for _ in range(count)]


def open_folder(folder: Path, layers: tuple[int, ...] = (1, 2)) -> EditableModel:
    """Load a checkpoint as editing does, in float32."""
    opened = CheckpointFolder.open(folder)
    family = find_family(opened.config)
    names = {layer: disk_name(family, layer, opened.tensors) for layer in layers}
    return load_model(folder, family, layers, names, device=torch.device("cpu"), dtype=torch.float32)


class Reader:
    """The same checkpoint read another way: transformers alone, in float64, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def log_probabilities(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = self.network(torch.tensor([list(ids)])).logits[0]
        assert logits.dtype == torch.float64
        return logits.log_softmax(-1)

    def target(self, prompt: str, target: str) -> tuple[float, list[bool]]:
        """Return the mean NLL of a target after a prompt, and for each of its tokens whether it is the likeliest."""
        prompt_ids = self.tokenizer(prompt)["input_ids"]
        ids = self.tokenizer(f"{prompt} {target}")["input_ids"]
        assert ids[: len(prompt_ids)] == prompt_ids
        rows = self.log_probabilities(ids)
        nlls, said = [], []
        for place in range(len(prompt_ids), len(ids)):
            nlls.append(-float(rows[place - 1, ids[place]]))
            said.append(int(rows[place - 1].argmax()) == ids[place])
        return sum(nlls) / len(nlls), said

    def nll(self, ids: Sequence[int]) -> float:
        """Return the summed NLL of all tokens but the first."""
        rows = self.log_probabilities(ids)
        return -sum(float(rows[place - 1, ids[place]]) for place in range(1, len(ids)))
