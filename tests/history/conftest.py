"""A workspace with a base, and one with a little history."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import workspaces

from reviver.history.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspaces.make_workspace(tmp_path)


@pytest.fixture
def chained(workspace: Workspace) -> Workspace:
    return workspaces.make_chain(workspace)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out waiting for the disk: no test cuts the power, and a busy disk would make the tests take minutes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
