"""A workspace with a base, and one with a little history."""

from __future__ import annotations

from pathlib import Path

import pytest
import workspaces

from reviver.history.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspaces.make_workspace(tmp_path)


@pytest.fixture
def chained(workspace: Workspace) -> Workspace:
    """v1 and v2 in a row, v3 beside v2 on v1; the head is v3."""
    fact, low_rank = workspaces.make_fact, workspaces.low_rank
    rome, oslo = fact("Rome", "Norway"), fact("Oslo", "Italy", true="Norway")
    workspaces.add_version(workspace, [rome, oslo], {workspaces.FIRST: low_rank(1)}, message="first")
    workspaces.add_version(
        workspace,
        [fact("Rome", "Chile"), fact("Lima", "Spain")],
        {workspaces.FIRST: low_rank(2), workspaces.SECOND: workspaces.dense(2)},
        message="second",
    )
    workspaces.add_version(
        workspace, [fact("Bern", "Peru")], {workspaces.FIRST: low_rank(3)}, parent="v1", message="branch"
    )
    return workspace
