"""Whether the memory is enough for what is planned, and what would do instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.devices import free_memory
from reviver.editing.model import TORCH_DTYPES
from reviver.errors import ResourceError
from reviver.text import human_bytes

_WORKING_BYTES = 500 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What of a checkpoint takes memory.

    Attributes:
        values: numbers in all tensors.
        edited: shapes of the edited tensors.
        stored: their dtype on disk, as safetensors call it.
        moments: whether their second moments are needed.
    """

    values: int
    edited: Sequence[Sequence[int]]
    stored: str
    moments: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How much memory is needed where it is scarcest.

    Attributes:
        where: `cpu` for the machine's memory, else the GPU.
        needed: bytes at the peak, estimated.
        free: bytes; None where the system does not tell.
        instead: options that fit, if this does not and others do.
        least: where nothing fits, the bytes that the most frugal way needs.
    """

    where: str
    needed: int
    free: int | None
    instead: str | None = None
    least: int | None = None

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as one can tell."""
        return self.free is None or self.needed <= self.free


def model_size(folder: CheckpointFolder, edited: Sequence[str], *, moments: bool) -> ModelSize:
    """Return the size of a base whose tensors `edited` are edited."""
    entries = [folder.entry(name) for name in edited]
    return ModelSize(
        values=sum(math.prod(entry.shape) for entry in folder.tensors.values()),
        edited=[entry.shape for entry in entries],
        stored=entries[0].dtype,
        moments=moments,
    )


def plan_memory(
    size: ModelSize,
    device: torch.device,
    dtype: torch.dtype,
    *,
    free: Callable[[torch.device], int | None] = free_memory,
) -> MemoryPlan:
    """Return whether an edit fits into memory, and if not, which other device or dtype would do."""
    asked = _scarcest(size, device, dtype, free)
    if asked.fits:
        return asked
    cpu = torch.device("cpu")
    ways = [(device, torch.bfloat16), (cpu, torch.float32), (cpu, torch.bfloat16)]
    tried = [(way, _scarcest(size, *way, free)) for way in ways if way != (device, dtype)]
    fitting = next((way for way, plan in tried if plan.fits), None)
    if fitting is None:
        least = min(plan.needed for _, plan in tried)
        return MemoryPlan(where=asked.where, needed=asked.needed, free=asked.free, least=least)
    instead = f"--device {fitting[0].type} --dtype {str(fitting[1]).removeprefix('torch.')}"
    return MemoryPlan(where=asked.where, needed=asked.needed, free=asked.free, instead=instead)


def check_memory(plan: MemoryPlan) -> None:
    """Raise where the memory is too small for what is planned.

    Raises:
        ResourceError: with both numbers, and what would fit.
    """
    if plan.fits or plan.free is None:
        return
    where = "memory" if plan.where == "cpu" else f"memory of `{plan.where}`"
    raise ResourceError(
        f"about {human_bytes(plan.needed)} of {where} are needed and {human_bytes(plan.free)} are free",
        hint=f"it fits with `{plan.instead}`"
        if plan.instead
        else f"free some memory, or use a machine with about {human_bytes(plan.least or plan.needed)} free",
        needed=plan.needed,
        free=plan.free,
    )


def _scarcest(
    size: ModelSize, device: torch.device, dtype: torch.dtype, free: Callable[[torch.device], int | None]
) -> MemoryPlan:
    """Return the need of the GPU or of the machine, whichever is the first not to be met."""
    model = size.values * dtype.itemsize
    # The live values in float32 beside the base's own.
    edited = sum((4 + TORCH_DTYPES[size.stored].itemsize) * math.prod(shape) for shape in size.edited)
    squares = [max(shape) ** 2 for shape in size.edited] if size.moments else [0]
    # Of each edited tensor a second moment in float32 and its factor in float64, and the copy that one is made from.
    moments = 12 * sum(squares) + 8 * max(squares)
    if device.type == "cpu":
        return MemoryPlan(where="cpu", needed=model + edited + moments + _WORKING_BYTES, free=free(device))
    on_device = MemoryPlan(
        where=str(device), needed=model + edited + 16 * max(squares) + _WORKING_BYTES, free=free(device)
    )
    if not on_device.fits:
        return on_device
    # A model goes to the GPU through the machine's memory, which then holds what the GPU has no room for.
    host = MemoryPlan(where="cpu", needed=max(model, moments) + _WORKING_BYTES, free=free(torch.device("cpu")))
    return on_device if host.fits else host
