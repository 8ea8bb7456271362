"""Whether the memory is enough for what is planned, where the blocks of the model lie, and what would do instead.

On the device lie the edited blocks, the embeddings and the head, what the solves need, and as many other blocks as fit. The
blocks above the edited ones come first, since they run again and again in the search for targets. What does not fit lies in main
memory; what does not fit there either is read from the shards, and a CPU reads all of it from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.architecture import Family
from reviver.editing.devices import free_memory
from reviver.editing.editors.need import Work
from reviver.editing.model import TORCH_DTYPES
from reviver.editing.placement import WHOLE, Placement
from reviver.errors import ResourceError
from reviver.text import human_bytes, plural

_WORKING_BYTES = 500 * 1024**2
_CPU = torch.device("cpu")
_INSTALL = "pip install 'reviver[offload]'"

# The bytes that a device has free; None where the system does not tell.
FreeMemory = Callable[[torch.device], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What of a checkpoint takes memory.

    Attributes:
        values: numbers in all tensors.
        blocks: numbers in the tensors of each block.
        layers: the edited blocks.
        edited: shapes of the tensors that are going to be edited; none where the model is only asked.
        stored: the dtype on disk, as safetensors call it.
        moments: whether the second moments of the edited tensors are needed.
        work: what the work on the edited tensors takes; None where they are not edited but second moments are computed.
        instead: what it would take under other options, by option, the best first.
    """

    values: int
    blocks: Mapping[int, int]
    layers: Sequence[int]
    edited: Sequence[Sequence[int]]
    stored: str
    moments: bool
    work: Work | None = None
    instead: Mapping[str, Work] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How much memory is needed where it is scarcest.

    Attributes:
        where: `cpu` for the machine's memory, else the GPU.
        needed: bytes at the peak, estimated.
        free: bytes; None where the system does not tell.
        blocks: how many blocks the model has.
        placement: those of them that do not lie on the device.
        instead: options under which it fits if this does not, or under which all blocks lie on the device.
        package: whether it fits once accelerate is installed.
        least: where nothing fits, the bytes that the most frugal way needs.
    """

    where: str
    needed: int
    free: int | None
    blocks: int
    placement: Placement = WHOLE
    instead: str | None = None
    package: bool = False
    least: int | None = None

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as one can tell."""
        return self.free is None or self.needed <= self.free


def model_size(
    folder: CheckpointFolder,
    family: Family,
    names: Mapping[int, str],
    *,
    edit: bool = True,
    moments: bool = False,
    work: Work | None = None,
    instead: Mapping[str, Work] | None = None,
) -> ModelSize:
    """Return the size of a base.

    Args:
        folder: its files.
        family: how its architecture names its parts.
        names: name on disk of the edited tensor of each edited block.
        edit: whether these tensors are going to be edited.
        moments: whether their second moments are needed for it.
        work: what the work on them takes; None where nothing is done but to compute second moments.
        instead: what it would take under other options.
    """
    entries = [folder.entry(name) for name in names.values()]
    # All blocks stand in one list, whose name is what lies before the number of an edited one.
    layer, edited = next(iter(names.items()))
    of_block = re.compile(re.escape(edited.removesuffix(f"{layer}.{family.matrix}.weight")) + r"(\d+)\.")
    blocks: dict[int, int] = {}
    for name, entry in folder.tensors.items():
        if (match := of_block.match(name)) is not None:
            blocks[int(match[1])] = blocks.get(int(match[1]), 0) + math.prod(entry.shape)
    return ModelSize(
        values=sum(math.prod(entry.shape) for entry in folder.tensors.values()),
        blocks=blocks,
        layers=tuple(names),
        edited=[entry.shape for entry in entries] if edit else (),
        stored=entries[0].dtype,
        moments=moments,
        work=work,
        instead=instead or {},
    )


def plan_memory(
    size: ModelSize,
    device: torch.device,
    dtype: torch.dtype,
    *,
    offload: str = "auto",
    processes: int = 1,
    free: FreeMemory = free_memory,
) -> MemoryPlan:
    """Return where the blocks shall lie; where that does not fit into memory either, which other options would do.

    Args:
        size: of the model.
        device: where to compute.
        dtype: in what.
        offload: `auto` keeps off the device what does not fit there, `always` all blocks that are not edited.
        processes: how many of them share this machine's memory, each with the model and a device of its own.
        free: tells the free memory.

    Raises:
        ResourceError: blocks shall lie elsewhere, and accelerate is not installed.
    """
    installed = find_spec("accelerate") is not None
    if offload == "always" and not installed:
        raise ResourceError(
            "blocks can lie off the device only with the package `accelerate`", hint=f"run `{_INSTALL}`"
        )
    asked = _Way(size, device, dtype, processes, free)
    others = [replace(asked, dtype=torch.bfloat16)]
    others += [replace(asked, device=_CPU, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    others = [way for way in others if (way.device, way.dtype) != (device, dtype)]
    frugal = [replace(asked, size=replace(size, work=work), option=option) for option, work in size.instead.items()]
    whole = asked.plan(WHOLE)
    if offload == "auto" and whole.fits:
        return whole
    moved = asked.plan(asked.placement(everything=offload == "always"))
    if installed and moved.fits:
        same = next((way for way in others if way.device == device and way.plan(WHOLE).fits), None)
        return replace(moved, instead=None if same is None or offload == "always" else f"--dtype {same.dtype_name}")
    refused = moved if installed else whole
    tried = [(way, way.plan(WHOLE)) for way in (*frugal, *others)]
    if installed:
        tried[len(frugal) : len(frugal)] = [(way, way.plan(way.placement())) for way in frugal]
        tried += [(way, way.plan(way.placement())) for way in others]
    fitting = next((way for way, plan in tried if plan.fits), None)
    if fitting is not None:
        return replace(
            refused, instead=fitting.option or f"--device {fitting.device.type} --dtype {fitting.dtype_name}"
        )
    least = min(plan.needed for plan in (refused, *(plan for _, plan in tried)))
    return replace(refused, package=not installed and moved.fits, least=least)


def check_memory(plan: MemoryPlan) -> None:
    """Raise where the memory is too small for what is planned.

    Raises:
        ResourceError: with both numbers, and what would fit.
    """
    if plan.fits or plan.free is None:
        return
    where = "memory" if plan.where == "cpu" else f"memory of `{plan.where}`"
    if plan.instead:
        hint = f"it fits with `{plan.instead}`"
    elif plan.package:
        hint = f"it fits with some blocks off the device: run `{_INSTALL}`"
    else:
        hint = f"free some memory, or use a machine with about {human_bytes(plan.least or plan.needed)} free"
    raise ResourceError(
        f"about {human_bytes(plan.needed)} of {where} are needed and {human_bytes(plan.free)} are free",
        hint=hint,
        needed=plan.needed,
        free=plan.free,
    )


def away_note(plan: MemoryPlan) -> str | None:
    """Return in words which blocks do not lie on the device; None where all do."""
    memory, disk = len(plan.placement.in_memory), len(plan.placement.on_disk)
    if not memory + disk:
        return None
    parts = [f"{memory} in main memory"] if memory else []
    parts += [f"{disk} on disk"] if disk else []
    otherwise = f"; with `{plan.instead}` all fit on the device" if plan.instead else ""
    return (
        f"of {plural(plan.blocks, 'block')} {' and '.join(parts)} come to the device each time they run, "
        f"which is slow{otherwise}"
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """A model on a device in a dtype; `option` asks for it, where it is neither device nor dtype that is different."""

    size: ModelSize
    device: torch.device
    dtype: torch.dtype
    processes: int
    free: FreeMemory
    option: str | None = None

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def bytes_of(self, blocks: Iterable[int]) -> int:
        return sum(self.size.blocks[block] for block in blocks) * self.dtype.itemsize

    def placement(self, *, everything: bool = False) -> Placement:
        """Return the placement that leaves on the device what fits there, or nothing that need not lie there."""
        movable = sorted(self.size.blocks.keys() - set(self.size.layers))
        away = Placement(on_disk=tuple(movable))
        if not everything:
            kept = self._fitting(movable, self.free(self.device), self._on_device(away), copies=1)
            away = Placement(on_disk=tuple(block for block in movable if block not in kept))
        if self.device.type == "cpu":
            return away
        kept = self._fitting(away.on_disk, self.free(_CPU), self._on_host(away), copies=self.processes)
        return Placement(in_memory=kept, on_disk=tuple(block for block in away.on_disk if block not in kept))

    def _fitting(self, blocks: Sequence[int], free: int | None, needed: int, *, copies: int) -> tuple[int, ...]:
        """Return the blocks, highest first taken, that fit beside what is needed anyway; ascending."""
        kept: list[int] = []
        for block in sorted(blocks, reverse=True):
            needed += copies * self.bytes_of([block])
            if free is not None and needed > free:
                break
            kept.append(block)
        return tuple(sorted(kept))

    def plan(self, placement: Placement) -> MemoryPlan:
        """Return the need of the GPU or of the machine, whichever is the first not to be met."""
        blocks = len(self.size.blocks)
        on_device = MemoryPlan(
            where=str(self.device),
            needed=self._on_device(placement),
            free=self.free(self.device),
            blocks=blocks,
            placement=placement,
        )
        if self.device.type == "cpu" or not on_device.fits:
            return on_device
        host = replace(on_device, where="cpu", needed=self._on_host(placement), free=self.free(_CPU))
        return on_device if host.fits else host

    def _resident(self, placement: Placement) -> int:
        """Return the bytes of the model on the device: what lies there, and the largest block that comes."""
        away = placement.away
        coming = max((self.bytes_of([block]) for block in away), default=0)
        return self.size.values * self.dtype.itemsize - self.bytes_of(away) + coming

    def _on_device(self, placement: Placement) -> int:
        resident = self._resident(placement) + _WORKING_BYTES
        # The live values in float32 beside the base's own.
        edited = sum((4 + TORCH_DTYPES[self.size.stored].itemsize) * math.prod(shape) for shape in self.size.edited)
        if self.device.type == "cpu":
            return self.processes * resident + edited + self._kept + self._solve + self._besides
        return resident + edited + self._solve

    def _on_host(self, placement: Placement) -> int:
        """Return what a GPU needs of the machine's memory."""
        own = self._kept + self._besides
        if not placement.away:
            # A model goes to the GPU through the machine's memory, which then holds what the GPU has no room for.
            return max(self.processes * self.size.values * self.dtype.itemsize, own) + _WORKING_BYTES
        return self.processes * (self.bytes_of(placement.in_memory) + _WORKING_BYTES) + own

    @property
    def _squares(self) -> list[int]:
        return [max(shape) ** 2 for shape in self.size.edited] if self.size.moments else []

    @property
    def _solve(self) -> int:
        """Return what the work on the edited tensors takes where it is done, at its peak."""
        if self.size.work is not None:
            return self.size.work.solve
        # Sums over a text, of all tensors at once.
        return (8 if self.device.type == "cpu" else 4) * sum(self._squares)

    @property
    def _kept(self) -> int:
        """Return what main memory holds all the time: second moments in float32, and what is kept for the solves."""
        if self.size.work is None:
            return 0
        return 4 * sum(self._squares) + self.size.work.kept(cpu=self.device.type == "cpu")

    @property
    def _besides(self) -> int:
        """Return what main memory holds at times: a second moment that is on its way to the disk, or what is done there anyway."""
        return 4 * max(self._squares, default=0) if self.size.work is None else self.size.work.host
