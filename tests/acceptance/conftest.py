"""What the acceptance tests share: the settings that keep tiny models fast, and the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from writing_commands import Scenes

SETTINGS = """
[apply]
rank = 3
device = "cpu"
maximum_relative_norm = 100.0

[targets]
steps = 6
prefixes = 2
prefix_length = 3

[moments]
tokens = 400
length = 32
weight = 4.0
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("REVIVER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def fast_workspace(tmp_path: Path) -> Path:
    """A folder for a workspace, with the settings of a tiny model."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "reviver.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenes]:
    """What every command that writes begins in."""
    from forks import Forks
    from writing_commands import Scenes

    with Forks() as forks:
        yield Scenes(forks, tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def reviver() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own."""

    def run(*arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "reviver", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert code is None or done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
