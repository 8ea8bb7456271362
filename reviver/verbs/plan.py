"""What an `apply` is going to do, known before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.editing.presets import Preset
from reviver.errors import ResourceError
from reviver.facts.fact import Fact
from reviver.files import free_bytes
from reviver.settings import Settings
from reviver.spectral.basis import RankChoice
from reviver.text import human_bytes

_CPU_OPERATIONS_PER_SECOND = 2e10
_GPU_OPERATIONS_PER_SECOND = 1e14
_WORKING_BYTES = 500 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor that will change.

    Attributes:
        name: on disk.
        layer: number of its block.
        shard: the file that holds it.
        dtype: as stored.
        shape: as stored.
        protected_rank: k of the filter; None without one.
        protected_energy: the share of the energy that k directions hold.
        moved_from: the k that was asked for, where it fell into a cluster of singular values.
        patch_rank: components that the patch will hold; None for a whole matrix.
    """

    name: str
    layer: int
    shard: str
    dtype: str
    shape: tuple[int, ...]
    protected_rank: int | None
    protected_energy: float | None
    moved_from: int | None
    patch_rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyPlan:
    """What an `apply` is going to do.

    Attributes:
        version: the name of the version to come.
        parent: the version it stands on.
        facts: how many facts.
        rounds: how many rounds they are solved in.
        round_size: facts in a round at most.
        editor: its name.
        filter: its name.
        preset: whose hyperparameters are used.
        device: where it is computed.
        dtype: in what.
        tensors: what will change.
        shards: the files that will be rewritten.
        checkpoint: whether a checkpoint is written.
        bytes_to_write: of patch and checkpoint, at most.
        free_bytes: on the disk of the workspace.
        memory_bytes: estimated peak.
        seconds: estimated, within a factor of a few.
        warnings: what a person should know before it begins.
    """

    version: str
    parent: str
    facts: int
    rounds: int
    round_size: int
    editor: str
    filter: str
    preset: str
    device: str
    dtype: str
    tensors: tuple[PlannedTensor, ...]
    shards: tuple[str, ...]
    checkpoint: bool
    bytes_to_write: int
    free_bytes: int
    memory_bytes: int
    seconds: float
    warnings: tuple[str, ...]


def make_plan(
    *,
    root: Path,
    version: str,
    parent: str,
    pin: BasePin,
    folder: CheckpointFolder,
    preset: Preset,
    settings: Settings,
    facts: Sequence[Fact],
    ranks: Mapping[str, RankChoice],
    factored: bool,
    checkpoint: bool,
    device: torch.device,
    dtype: torch.dtype,
    warnings: Sequence[str],
) -> ApplyPlan:
    """Return the plan of an `apply`."""
    tensors = []
    patch_bytes = 0
    for layer, name in zip(pin.layers, pin.edited, strict=True):
        entry = folder.entry(name)
        rows, columns = entry.shape
        low_rank = factored and len(facts) * (rows + columns) <= rows * columns
        patch_bytes += 4 * (len(facts) * (rows + columns) if low_rank else rows * columns)
        choice = ranks.get(name)
        tensors.append(
            PlannedTensor(
                name=name,
                layer=layer,
                shard=entry.shard,
                dtype=entry.dtype,
                shape=entry.shape,
                protected_rank=None if choice is None else choice.rank,
                protected_energy=None if choice is None else choice.energy,
                moved_from=None if choice is None else choice.moved_from,
                patch_rank=len(facts) if low_rank else None,
            )
        )
    shards = sorted({tensor.shard for tensor in tensors})
    shard_bytes = sum(pin.file(shard).size for shard in shards)
    other_bytes = sum(file.size for file in pin.files if file.path not in folder.shards)
    size = settings.apply.round_size
    return ApplyPlan(
        version=version,
        parent=parent,
        facts=len(facts),
        rounds=-(-len(facts) // size),
        round_size=size,
        editor=settings.apply.editor,
        filter=settings.apply.filter,
        preset=preset.name,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        tensors=tuple(tensors),
        shards=tuple(shards),
        checkpoint=checkpoint,
        bytes_to_write=patch_bytes + (shard_bytes + other_bytes if checkpoint else 0),
        free_bytes=free_bytes(root),
        memory_bytes=_memory(pin, folder, tensors, dtype),
        seconds=_seconds(folder, preset, settings, len(facts), device),
        warnings=tuple(warnings),
    )


def check_disk(plan: ApplyPlan) -> None:
    """Raise where the disk is too small for what the plan writes.

    Raises:
        ResourceError: with both numbers.
    """
    if plan.bytes_to_write > plan.free_bytes:
        raise ResourceError(
            f"{human_bytes(plan.bytes_to_write)} would be written and {human_bytes(plan.free_bytes)} are free",
            hint="free some space, or write the checkpoint later: `reviver apply --no-checkpoint`",
            needed=plan.bytes_to_write,
            free=plan.free_bytes,
        )


def _memory(pin: BasePin, folder: CheckpointFolder, tensors: Sequence[PlannedTensor], dtype: torch.dtype) -> int:
    """Estimate the peak: the model, two float32 copies of each edited tensor, its second moment and a float64 factor of one."""
    values = sum(_count(entry.shape) for entry in folder.tensors.values())
    model = values * torch.empty((), dtype=dtype).element_size()
    inner = max(max(tensor.shape) for tensor in tensors)
    edited = sum(8 * _count(tensor.shape) + 12 * inner * inner for tensor in tensors)
    return model + edited + _WORKING_BYTES


def _seconds(folder: CheckpointFolder, preset: Preset, settings: Settings, facts: int, device: torch.device) -> float:
    """Estimate the time: forward and backward of the upper blocks for every context and step, at a usual rate."""
    values = sum(_count(entry.shape) for entry in folder.tensors.values())
    contexts = settings.targets.prefixes + 2
    steps = settings.targets.steps or preset.steps
    operations = facts * contexts * (2 * values * 40 + 4 * values * 12 * steps)
    rate = _GPU_OPERATIONS_PER_SECOND if device.type == "cuda" else _CPU_OPERATIONS_PER_SECOND * torch.get_num_threads()
    return operations / rate


def _count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
