"""The processes of one run: several ranks under `torchrun`, or one process alone.

The first rank does what one process would do: it reads, decides, solves and writes, and holds the workspace's lock. The others
only help: they wait for its orders, do their share of the facts, texts or matrices, and hand back what they found. So
there is one flow of work, and one rank is the special case in which nobody is told anything.

All ranks are on one machine and speak over its loopback interface: tensors of GPUs by NCCL, all else by Gloo. Nothing here
imports torch as long as there is one process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from reviver.editing.world import World, find_world
from reviver.errors import RankError, ResourceError, UsageError
from reviver.text import plural, printable

if TYPE_CHECKING:
    from torch import Tensor

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A rank may wait while another reads a model from a slow disk; a dead one is noticed at once, by its closed connection.
_PATIENCE = timedelta(days=2)
_ENDED = "another process of this run ended; nothing was lost"
_ENDED_HINT = "see which one, and why, in the report of `torchrun`; then run the command again"


def may_speak() -> bool:
    """Return whether this process shall tell its error: of several ranks the first to ask, of one process always."""
    try:
        world = find_world()
    except UsageError:
        return os.environ.get("RANK") == "0"
    if world is None:
        return True
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        store = TCPStore(
            world.address, world.port, world.size, False, timeout=timedelta(seconds=5), wait_for_workers=False
        )
        run = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"
        return int(store.add(f"reviver/spoken/{run}", 1)) == 1
    except (ImportError, RuntimeError, ValueError):
        return world.rank == 0


class Ranks:
    """The processes of one run, as one of them sees them.

    Args:
        rank: the number of this process.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def leads(self) -> bool:
        """Whether this process has others to tell what to do."""
        return self.size > 1 and self.rank == 0

    @property
    def follows(self) -> bool:
        """Whether this process waits to be told what to do."""
        return self.rank > 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """Return this process's share of some items: every `size`-th, so that like neighbours are parted fairly."""
        return list(items[self.rank :: self.size])

    # From the first rank to the others.

    def tell(self, order: str, **values: object) -> None:
        """Tell the followers what is next, with values that JSON knows; does nothing on a follower or alone."""
        if self.leads:
            self._broadcast_bytes(json.dumps({"order": order, **values}).encode())

    def hear(self) -> dict[str, Any]:
        """Wait for what the first rank tells, and return it."""
        heard: dict[str, Any] = json.loads(self._broadcast_bytes(None))
        return heard

    def spread(self, tensor: Tensor) -> None:
        """Give every rank's tensor the first one's values, in place; does nothing alone."""
        if self.size > 1:
            import torch.distributed as dist

            with _noticing_the_dead():
                dist.broadcast(tensor, 0)

    def _broadcast_bytes(self, data: bytes | None) -> bytes:
        import torch
        import torch.distributed as dist

        with _noticing_the_dead():
            length = torch.tensor([0 if data is None else len(data)])
            dist.broadcast(length, 0)
            content = torch.empty(int(length), dtype=torch.uint8)
            if data is not None:
                content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(content, 0)
        return content.numpy().tobytes()

    # From the others to the first rank.

    def gather(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return every rank's tensors, by rank, on the first one; nothing on the others. The shapes may differ."""
        if self.size == 1:
            return [list(tensors)]
        import torch
        import torch.distributed as dist

        with _noticing_the_dead():
            if self.follows:
                kept = [tensor.detach().cpu().contiguous() for tensor in tensors]
                header = json.dumps([[str(tensor.dtype)[6:], list(tensor.shape)] for tensor in kept]).encode()
                dist.send(torch.tensor([len(header)]), 0)
                dist.send(torch.frombuffer(bytearray(header), dtype=torch.uint8), 0)
                for tensor in kept:
                    if tensor.numel():
                        dist.send(tensor.view(-1).view(torch.uint8), 0)
                return []
            gathered = [list(tensors)]
            for rank in range(1, self.size):
                length = torch.empty(1, dtype=torch.long)
                dist.recv(length, rank)
                encoded = torch.empty(int(length), dtype=torch.uint8)
                dist.recv(encoded, rank)
                received = []
                for dtype, shape in json.loads(encoded.numpy().tobytes()):
                    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                    if tensor.numel():
                        dist.recv(tensor.view(-1).view(torch.uint8), rank)
                    received.append(tensor)
                gathered.append(received)
            return gathered

    def sum_on_first(self, tensor: Tensor) -> None:
        """Add every rank's tensor up on the first one, in place, and set the others' to zero; does nothing alone."""
        if self.size > 1:
            import torch.distributed as dist

            with _noticing_the_dead():
                dist.reduce(tensor, 0)
            if self.follows:
                tensor.zero_()

    def numbers(self, own: int) -> list[int]:
        """Return one number of every rank, by rank, on all of them."""
        if self.size == 1:
            return [own]
        import torch
        import torch.distributed as dist

        parts = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with _noticing_the_dead():
            dist.all_gather(parts, torch.tensor([own]))
        return [int(part) for part in parts]


ALONE = Ranks()
"""One process."""


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes of this run, if there are any, until the end of the context.

    Args:
        device: `[apply] device` of the settings. With several ranks on GPUs each takes its own.

    Raises:
        UsageError: the ranks are on several machines, or the device names one GPU for all.
        ResourceError: there are fewer GPUs than ranks, or the ranks cannot meet.
    """
    world = find_world()
    if world is None:
        yield ALONE
        return
    _check_world(world, device)
    import torch
    import torch.distributed as dist

    on_gpu = _on_gpu(device)
    if on_gpu:
        torch.cuda.set_device(world.rank)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", os.environ["GLOO_SOCKET_IFNAME"])
    if threading.current_thread() is threading.main_thread():
        # `torchrun` ends the other ranks in this way when one has failed.
        signal.signal(signal.SIGTERM, _end)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=world.rank, world_size=world.size, timeout=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"the {plural(world.size, 'process', 'processes')} of this run cannot meet: {_first_line(error)}",
            hint="start them with `torchrun --nproc-per-node N -m reviver …` on one machine",
        ) from error
    ranks = Ranks(world.rank, world.size)
    yield ranks
    # After an error nobody is told to end: the others see that this process is gone.
    ranks.tell("end")
    dist.destroy_process_group()


def _check_world(world: World, device: str) -> None:
    """Raise where so many ranks make no sense, before anything is loaded."""
    if world.local_size != world.size or world.address not in _LOOPBACK:
        raise UsageError(
            "the processes of a run must be on one machine, and meet on its loopback interface",
            hint="use `torchrun --nproc-per-node N` without `--nnodes`, `--master-addr` and the like",
        )
    if device.startswith("cuda:"):
        raise UsageError(
            f"{plural(world.size, 'process', 'processes')} cannot share the device `{printable(device, 20)}`",
            hint="use `--device cuda`: each process takes a GPU of its own",
        )
    if _on_gpu(device):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count < world.size:
            raise ResourceError(
                f"{plural(world.size, 'process', 'processes')} need as many GPUs, and this machine has {count}",
                hint="start fewer processes, or use `--device cpu`",
            )


def _on_gpu(device: str) -> bool:
    if device != "auto":
        return device == "cuda"
    import torch

    return bool(torch.cuda.is_available())


def _end(_number: int, _frame: object) -> NoReturn:
    raise RankError(_ENDED, hint=_ENDED_HINT)


@contextmanager
def _noticing_the_dead() -> Iterator[None]:
    """Turn what a collective raises when a process is gone into our own error."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(_ENDED, hint=_ENDED_HINT) from error


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 160)
