"""Tiny models in memory, and the path to their maker, which the acceptance tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "acceptance"))

from tiny_models import LAYERS, make_checkpoint

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.architecture import disk_name, find_family
from reviver.editing.model import EditableModel, load_model


def open_tiny(folder: Path, family: str, layers: tuple[int, ...] = (1, 2)) -> EditableModel:
    import torch

    make_checkpoint(folder, family)
    opened = CheckpointFolder.open(folder)
    known = find_family(opened.config)
    assert max(layers) < LAYERS
    names = {layer: disk_name(known, layer, opened.tensors) for layer in layers}
    return load_model(folder, known, layers, names, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    return open_tiny(tmp_path_factory.mktemp("tiny") / "base", "llama")
