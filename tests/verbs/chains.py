"""Chains whose every component belongs to a known fact, and what their bytes must be, in fractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import workspaces

from reviver.checkpoint.delta import Delta, LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.facts.fact import Fact
from reviver.history.patch import Patch
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.verbs.made import MakeChoice

QUICK = MakeChoice(measure=False)
SETTINGS = Settings()


def known_family(workspace: Workspace) -> Workspace:
    """Let the pin say how the made-up architecture names its blocks."""
    extra = {"blocks": "layers", "matrix": "down", "transposed": False}
    workspace.save_pin(replace(workspace.pin(), extra=extra))
    return workspace


def apply_facts(workspace: Workspace, facts: Sequence[Fact], *, parent: str = "head", seed: int) -> Version:
    """Make a version whose component r belongs to fact r, in both tensors."""
    deltas: dict[str, Delta] = {
        name: workspaces.low_rank(seed + 100 * place, len(facts)) for place, name in enumerate(workspaces.NAMES)
    }
    return workspaces.add_version(workspace, facts, deltas, parent=parent)


def patches(workspace: Workspace, names: Iterable[str], tensor: str) -> list[Delta]:
    """Return the patches of versions as they lie on disk."""
    found = []
    for name in names:
        patch = Patch.open(workspace.edits / name / "patch.safetensors")
        if tensor in patch.names:
            found.append(patch.delta(tensor))
    return found


def component(delta: Delta, index: int) -> LowRankDelta:
    """Return one component of the factors."""
    assert isinstance(delta, LowRankDelta)
    return LowRankDelta(np.ascontiguousarray(delta.left[:, [index]]), np.ascontiguousarray(delta.right[[index]]))


def expected(workspace: Workspace, tensor: str, deltas: Sequence[Delta]) -> bytes:
    """Return base + deltas, summed in fractions and rounded once."""
    raw = CheckpointFolder.open(Path(workspace.pin().folder)).read_tensor(tensor)
    return workspaces.exact_bytes(raw, deltas)


def stored(workspace: Workspace, version: str, tensor: str) -> bytes:
    """Return the bytes of a tensor in a version's checkpoint."""
    return CheckpointFolder.open(workspace.checkpoint(version)).read_tensor(tensor)
