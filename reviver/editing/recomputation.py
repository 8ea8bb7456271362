"""Blocks that do not lie on the device, when gradients flow through them: they run once more in the backward pass.

Autograd keeps the weights that a gradient will pass through. Those that came to the device for one run would all stay there, and
nothing would be gained; so a block's run is forgotten and done again when its gradient is due, one block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from reviver.editing.model import EditableModel
from reviver.editing.propagation import replaced_forward


@contextmanager
def recomputing(model: EditableModel, first: int) -> Iterator[None]:
    """Let the blocks from `first` on that do not lie on the device run again in the backward pass.

    What else stands in for a block's forward must do so already: it is part of what is done again, after this context too.
    """
    with ExitStack() as stack:
        if torch.is_grad_enabled():
            for index in model.placement.away:
                if index >= first:
                    block = model.blocks[index]
                    stack.enter_context(replaced_forward(block, _run_twice(block.forward)))
        yield


def _run_twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        # To the end: a second run that stopped where autograd has all it needs would leave a matrix on the device.
        with set_checkpoint_early_stop(False):
            return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    return run
