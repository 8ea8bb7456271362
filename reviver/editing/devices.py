"""How much memory a device has left."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def host_memory() -> tuple[int | None, int | None]:
    """Return the machine's memory and what of it is free, in bytes (Linux and macOS; None where the system does not tell)."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None, None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return total, None
    return total, free


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes of a device's memory are free, those included that torch holds and does not use; None if unknown."""
    if device.type != "cuda":
        return host_memory()[1]
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
