"""What an `apply` is going to do, known before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.editing.architecture import model_shape
from reviver.editing.base import pinned_family, pinned_names
from reviver.editing.editors import Editor
from reviver.editing.memory import MemoryPlan, ModelSize, model_size, plan_memory
from reviver.editing.presets import Preset
from reviver.editing.ranks import Ranks
from reviver.errors import ResourceError, UsageError
from reviver.facts.fact import Fact
from reviver.files import free_bytes
from reviver.settings import Settings
from reviver.spectral.basis import RankChoice
from reviver.text import human_bytes, plural
from reviver.verbs.work import PlannedWork

_CPU_OPERATIONS_PER_SECOND = 2e10
_GPU_OPERATIONS_PER_SECOND = 1e14
# Of a row of a fact: what is read once, and what every step runs anew (from the subject's last token on).
_TOKENS_ONCE, _TOKENS_A_STEP = 20, 6
# What comes to the device a second, from main memory and from disk; how many tokens a step carries; what comes besides steps.
_BYTES_PER_SECOND = {"in_memory": 1e10, "on_disk": 1e9}
_TOKENS_A_BATCH = 1024
_OTHER_RUNS = 10


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
        patch_rank: components that the patch will hold at most; None for a whole matrix.
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
        bytes_to_write: of patch, checkpoint, finished rounds and what is kept for later edits, at most.
        free_bytes: on the disk of the workspace.
        memory_bytes: estimated peak, where memory is scarcest.
        memory: where that is, what is free there, which blocks do not lie on the device, and what would do instead.
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
    memory: MemoryPlan
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
    editor: Editor,
    checkpoint: bool,
    device: torch.device,
    dtype: torch.dtype,
    processes: int,
    warnings: Sequence[str],
) -> ApplyPlan:
    """Return the plan of an `apply`."""
    tensors = []
    work = PlannedWork(
        root=root, parent=parent, pin=pin, folder=folder, preset=preset, settings=settings, facts=facts, ranks=ranks
    )
    components = work.components(editor)
    for layer, name in zip(pin.layers, pin.edited, strict=True):
        entry = folder.entry(name)
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
                patch_rank=components if work.is_thin(editor, name) else None,
            )
        )
    shards = sorted({tensor.shard for tensor in tensors})
    shard_bytes = sum(pin.file(shard).size for shard in shards)
    other_bytes = sum(file.size for file in pin.files if file.path not in folder.shards)
    size = settings.apply.round_size
    model = model_size(
        folder,
        pinned_family(pin, folder),
        pinned_names(pin),
        moments=editor.needs_second_moment,
        work=work.of(editor, size),
        instead=work.instead_of(editor, size),
    )
    memory = plan_memory(model, device, dtype, offload=settings.apply.offload, processes=processes)
    return ApplyPlan(
        version=version,
        parent=parent,
        facts=len(facts),
        rounds=-(-len(facts) // size),
        round_size=size,
        editor=editor.name,
        filter=settings.apply.filter,
        preset=preset.name,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        tensors=tuple(tensors),
        shards=tuple(shards),
        checkpoint=checkpoint,
        bytes_to_write=work.bytes_to_write(editor, device) + (shard_bytes + other_bytes if checkpoint else 0),
        free_bytes=free_bytes(root),
        memory_bytes=memory.needed,
        memory=memory,
        seconds=_seconds(model.values, model_shape(folder.config).layers, preset, settings, len(facts), device)
        + _moving_seconds(model, memory, preset, settings, len(facts), dtype),
        warnings=tuple(warnings),
    )


def check_share(processes: Ranks, facts: Sequence[Fact]) -> None:
    """Raise where some processes would have nothing to do.

    Raises:
        UsageError: there are more processes than facts.
    """
    if processes.size > len(facts):
        raise UsageError(
            f"{plural(len(facts), 'fact')} cannot be shared among {plural(processes.size, 'process', 'processes')}",
            hint=f"start at most {len(facts)}, or leave `torchrun` out",
        )


def check_disk(plan: ApplyPlan) -> None:
    """Raise where the disk is too small for what the plan writes.

    Raises:
        ResourceError: with both numbers.
    """
    if plan.bytes_to_write > plan.free_bytes:
        raise ResourceError(
            f"{human_bytes(plan.bytes_to_write)} would be written and {human_bytes(plan.free_bytes)} are free",
            hint="free some space, or make the patch only with `--no-checkpoint`: `reviver checkout` writes the checkpoint later",
            needed=plan.bytes_to_write,
            free=plan.free_bytes,
        )


def _seconds(values: int, layers: int, preset: Preset, settings: Settings, facts: int, device: torch.device) -> float:
    """Estimate the time: forward and backward of the upper blocks for every context and step, at a usual rate."""
    contexts = settings.targets.prefixes + 2
    steps = settings.targets.steps or preset.steps
    above = 1 - (preset.layers[-1] + 1) / layers
    operations = facts * contexts * values * (2 * _TOKENS_ONCE + 4 * above * _TOKENS_A_STEP * steps)
    rate = _GPU_OPERATIONS_PER_SECOND if device.type == "cuda" else _CPU_OPERATIONS_PER_SECOND * torch.get_num_threads()
    return operations / rate


def _moving_seconds(
    size: ModelSize, memory: MemoryPlan, preset: Preset, settings: Settings, facts: int, dtype: torch.dtype
) -> float:
    """Estimate how long blocks are on their way to the device: those above the edited ones come twice a step."""
    tokens = facts * (settings.targets.prefixes + 2) * _TOKENS_A_STEP
    batches = max(-(-facts // settings.apply.round_size), -(-tokens // _TOKENS_A_BATCH))
    steps = settings.targets.steps or preset.steps
    seconds = 0.0
    for where, rate in _BYTES_PER_SECOND.items():
        for block in getattr(memory.placement, where):
            runs = _OTHER_RUNS + (2 * steps * batches if block > preset.layers[-1] else 0)
            seconds += runs * size.blocks[block] * dtype.itemsize / rate
    return seconds
