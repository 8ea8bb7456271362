"""Two pieces of work at once on a CPU, each in a thread of its own, on twins of the model that share its weights.

Of the time that a search for targets takes, four tenths go to Python and to operations too small to be split among threads. Two
searches side by side fill what each of them leaves idle; more than two were not measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from queue import SimpleQueue
from threading import Event, Lock
from typing import TypeVar

import torch

from reviver.editing.model import EditableModel

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[float], None]

AT_ONCE = 2


class _HaltedError(Exception):
    """What stops a thread when another failed or the caller was interrupted."""


def work_at_once(model: EditableModel) -> int:
    """Return how many pieces of work a model can do at once: one where threads would share a GPU, blocks on disk, or one core."""
    return (
        AT_ONCE if model.device.type == "cpu" and not model.placement.away and torch.get_num_threads() >= AT_ONCE else 1
    )


def twin(model: EditableModel) -> EditableModel:
    """Return a model with modules of its own and the same parameters: what is patched on one is not on the other."""
    shared = {id(one): one for one in (*model.network.parameters(), *model.network.buffers())}
    return replace(model, network=copy.deepcopy(model.network, shared))


def run_at_once(
    model: EditableModel,
    work: Callable[[EditableModel, Item, Advance], Result],
    items: Sequence[Item],
    advance: Advance,
) -> list[Result]:
    """Return what some work gives for each item, as many items at once as the model can do.

    Args:
        model: the model.
        work: called with the model or a twin of it, an item, and `advance`; to be stopped it must call this often, if only with 0.
        items: in the order in which they are begun.
        advance: told of progress, by one thread at a time.

    Raises:
        Exception: the first that a piece of work raised; the others are stopped.
    """
    count = min(work_at_once(model), len(items))
    if count < AT_ONCE:
        return [work(model, item, advance) for item in items]
    halted, lock = Event(), Lock()
    models: SimpleQueue[EditableModel] = SimpleQueue()
    for each in (model, *(twin(model) for _ in range(count - 1))):
        models.put(each)

    def advance_or_stop(amount: float) -> None:
        if halted.is_set():
            raise _HaltedError
        with lock:
            advance(amount)

    def one(item: Item) -> Result:
        own = models.get()
        try:
            return work(own, item, advance_or_stop)
        finally:
            models.put(own)

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count)
    try:
        # A thread that computes for the first time takes over the number that is set then.
        torch.set_num_threads(threads // count)
        futures = [pool.submit(one, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((error for future in done if (error := future.exception())), None)
    finally:
        halted.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    if failed is not None:
        raise failed
    return [future.result() for future in futures]
