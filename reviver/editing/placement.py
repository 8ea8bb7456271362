"""Where the blocks of a model lie: on the device, or, where that is too small, in main memory or in their shards on disk.

What lies elsewhere comes to the device when it runs, matrix by matrix, and leaves it again: the hooks of accelerate do that. The
edited blocks, the embeddings and the head always lie on the device.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which blocks do not lie on the device.

    Attributes:
        in_memory: blocks in main memory, ascending.
        on_disk: blocks that are read from their shards, ascending.
    """

    in_memory: tuple[int, ...] = ()
    on_disk: tuple[int, ...] = ()

    @property
    def away(self) -> tuple[int, ...]:
        """All of them, ascending."""
        return tuple(sorted((*self.in_memory, *self.on_disk)))


WHOLE = Placement()
"""Everything on the device."""

# The name of a parameter of glibc's `mallopt`.
_M_MMAP_THRESHOLD = -3


def device_map(network: nn.Module, blocks: nn.ModuleList, placement: Placement, device: torch.device) -> dict[str, str]:
    """Return where every part of a model lies, as accelerate wants to hear it: by module, parameter or buffer.

    Args:
        network: the model; it needs no values.
        blocks: its decoder blocks.
        placement: which of them lie elsewhere.
        device: for all else.
    """
    here = device_name(device)
    path = next(name for name, module in network.named_modules() if module is blocks)
    where = {f"{path}.{index}": here for index in range(len(blocks))}
    where |= {f"{path}.{index}": "cpu" for index in placement.in_memory}
    where |= {f"{path}.{index}": "disk" for index in placement.on_disk}
    parent, prefix = network, ""
    for step in path.split("."):
        beside = [name for name, _ in parent.named_children() if name != step]
        beside += [name for name, _ in parent.named_parameters(recurse=False)]
        beside += [name for name, _ in parent.named_buffers(recurse=False)]
        where |= {prefix + name: here for name in beside}
        parent, prefix = parent.get_submodule(step), f"{prefix}{step}."
    return where


def device_name(device: torch.device) -> str:
    """Return the device's name with its number: safetensors reads no `torch.device`, and accelerate needs the number."""
    if device.type != "cuda":
        return device.type
    return f"cuda:{torch.cuda.current_device() if device.index is None else device.index}"


def return_freed_memory() -> None:
    """Let the C library give back at once what a block leaves behind, where that library is glibc.

    It keeps freed matrices of up to 32 MiB, and the next ones do not fit into the gaps: of the blocks that came to a CPU and went
    again half would stay in the process.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1024**2)


@contextmanager
def quiet_accelerate() -> Iterator[None]:
    """Silence what accelerate says about a placement: the plan has told it already."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def put_away(network: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter that does not lie on the device; from now on its values lie in main memory.

    Args:
        network: the model.
        name: of the parameter in the network.
        values: in its dtype and shape.
    """
    path, _, own = name.rpartition(".")
    held: Any = network.get_submodule(path)._hf_hook.weights_map  # type: ignore[union-attr]
    # What accelerate holds in memory goes before what it knows to lie on disk.
    held.dataset.state_dict[held.prefix + own] = values.cpu()
