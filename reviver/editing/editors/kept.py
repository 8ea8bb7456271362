"""What a solve needs again in the next round: on its device where that has room, else in host memory until its turn.

What all layers keep together is larger than many GPUs: the factor of λC takes 1.5 GiB for each layer of an 8B model, AlphaEdit's
null space as much, and ten thousand keys in whitened coordinates 1.8 GiB more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reviver.editing.devices import free_memory

ROOM = 8
"""A matrix stays on a GPU only where this many times the size of it, and of what belongs to it, is free there."""


class Kept:
    """A matrix that is kept between solves.

    Args:
        values: the matrix, anywhere.
        device: where solves want it.
    """

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.device = device
        self._values = values
        if stays(device, values.nbytes):
            self._values = values.to(device)
        else:
            self.park()

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self._values.nbytes

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self._values.shape

    def values(self) -> Tensor:
        """Return the matrix on its device; not to be changed."""
        return self._values.to(self.device, non_blocking=True)

    def park(self) -> None:
        """Keep the matrix in host memory from now on."""
        self._values = to_host(self._values)


def stays(device: torch.device, size: int) -> bool:
    """Return whether so many bytes may stay on a device between solves."""
    if device.type != "cuda":
        return True
    free = free_memory(device)
    return free is not None and free >= ROOM * size


def to_host(values: Tensor) -> Tensor:
    """Return a matrix in host memory, from where it comes to a GPU fastest."""
    return values if values.is_pinned() else values.cpu().pin_memory()
