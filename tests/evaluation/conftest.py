"""A foreign pretrained model with a second reading of it, and a tiny workspace with two versions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "acceptance"))

from second_reader import STORIES, Outcome, Reader, open_folder
from tiny_models import FACTS, make_checkpoint, open_tiny, write_facts

from reviver.cli import app
from reviver.editing.model import EditableModel


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("REVIVER_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = app.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code=code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    return open_tiny(tmp_path_factory.mktemp("tiny") / "base", "llama")


@pytest.fixture(scope="session")
def stories() -> EditableModel:
    if not STORIES.is_dir():
        pytest.skip("the foreign checkpoint is not beside the project")
    return open_folder(STORIES)


@pytest.fixture(scope="session")
def reader() -> Reader:
    if not STORIES.is_dir():
        pytest.skip("the foreign checkpoint is not beside the project")
    return Reader(STORIES)


SETTINGS = """
[apply]
rank = 3
device = "cpu"
maximum_relative_norm = 100.0

[targets]
steps = 3
prefixes = 1
prefix_length = 3

[moments]
tokens = 200
length = 32
weight = 4.0
"""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace on a tiny model: v1 sets three facts, v2 sets the first of them again and a new one."""
    folder = tmp_path_factory.mktemp("prepared")
    make_checkpoint(folder / "base")
    workspace = folder / "workspace"
    workspace.mkdir()
    (workspace / "reviver.toml").write_text(SETTINGS, encoding="utf-8")
    second = ({**FACTS[0], "target_new": "Brundia"}, {**FACTS[1], "subject": "Oskar Lund", "target_new": "Ilva"})
    options = ["-C", str(workspace), "-q"]
    assert app.run(["init", str(folder / "base"), *options]) == 0
    assert app.run(["apply", str(write_facts(folder / "one.jsonl")), *options]) == 0
    assert app.run(["apply", str(write_facts(folder / "two.jsonl", second)), *options]) == 0
    return workspace
