"""What the environment says about the processes of this run; read without torch, since every command asks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from reviver.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the environment says about the processes of this run.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        local_size: how many of them are on this machine.
        address: where they meet.
        port: where they meet.
    """

    rank: int
    size: int
    local_size: int
    address: str
    port: int


def find_world(environment: Mapping[str, str] | None = None) -> World | None:
    """Return the processes of this run, or None where this is the only one.

    Raises:
        UsageError: `torchrun`'s variables are there but make no sense.
    """
    known = os.environ if environment is None else environment
    if "RANK" not in known or "WORLD_SIZE" not in known:
        return None
    try:
        rank, size = int(known["RANK"]), int(known["WORLD_SIZE"])
        local_size, port = int(known.get("LOCAL_WORLD_SIZE", size)), int(known.get("MASTER_PORT", "0"))
    except ValueError as error:
        raise UsageError(
            "the variables RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and MASTER_PORT must be numbers",
            hint="start several processes with `torchrun --nproc-per-node N -m reviver …`",
        ) from error
    if size == 1:
        return None
    if not 0 <= rank < size:
        raise UsageError(
            f"rank {rank} is not one of {size} processes",
            hint="start several processes with `torchrun --nproc-per-node N -m reviver …`",
        )
    return World(rank=rank, size=size, local_size=local_size, address=known.get("MASTER_ADDR", ""), port=port)
