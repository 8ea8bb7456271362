"""What a person chooses and is told about a version that is made from patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reviver.history.manifest import ManifestTensor
from reviver.history.results import FactResult

if TYPE_CHECKING:
    from reviver.evaluation.outcomes import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeChoice:
    """What a person chooses for any version that is made from patches.

    Attributes:
        message: what the version is for; each verb has its own where this is empty.
        measure: ask the model about every fact before and after; without, no model is loaded.
        checkpoint: write a checkpoint; without, the patch alone is made.
    """

    message: str = ""
    measure: bool = True
    checkpoint: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What a new version did to the facts, asked on the bytes that were written.

    Attributes:
        before: shares over the facts that the new version holds, on its parent.
        after: the same on the new version.
        results: of each of these facts.
        dropped: of each fact that its parent holds and it does not.
    """

    before: Summary
    after: Summary
    results: tuple[FactResult, ...]
    dropped: tuple[FactResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What the sum of one tensor's patches lost when it became one float32 matrix.

    Attributes:
        name: of the tensor.
        entries: how many stored entries differ from those of the exact sum.
        total: of how many.
        largest: the largest difference between stored entries.
    """

    name: str
    entries: int
    total: int
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeReport:
    """What every verb reports that makes a version from patches.

    Attributes:
        version: the new version, now the head.
        id: its id.
        parent: the version that it stands on.
        facts_in_force: how many facts it holds.
        facts_dropped: how many its parent holds and it does not.
        outcomes: what it did to them; None where it was not measured.
        tensors: per tensor: norms, captured fraction, drift.
        exact: the bytes are those of the exact sum of all patches that it was made from.
        losses: of the tensors whose sum became a float32 matrix, also where nothing was lost.
        patch_bytes: size of the patch.
        checkpoint: where the checkpoint is, if one was written.
        seconds: by phase.
        warnings: what a person should know.
    """

    version: str
    id: str
    parent: str
    facts_in_force: int
    facts_dropped: int
    outcomes: Outcomes | None
    tensors: tuple[ManifestTensor, ...]
    exact: bool
    losses: tuple[Loss, ...]
    patch_bytes: int
    checkpoint: Path | None
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    def values(self) -> dict[str, Any]:
        """Return these fields by name, for a verb's own report that adds to them."""
        return {one.name: getattr(self, one.name) for one in fields(MadeReport)}
