"""Tiny models in memory, and the path to their maker, which the acceptance tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "acceptance"))

from tiny_models import open_tiny

from reviver.editing.model import EditableModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    return open_tiny(tmp_path_factory.mktemp("tiny") / "base", "llama")
