"""Running a part of a model: from given states, up to a block, above a block, or for some positions only.

Every architecture of transformers keeps its own masks, rotary tables and soft caps. Nothing of that is written again here: the
model's own forward runs, while blocks that are not needed hand on what they are given. So a part of a model costs what the
part costs, and is computed by exactly the code that computes the whole.

Legend: B rows, T columns, S columns from the subject's last token on, H hidden width, M gathered positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from reviver.editing.model import EditableModel
from reviver.editing.tokens import Batch


class _StopForwardError(Exception):
    """Raised by a hook when everything that was asked for has been seen."""


def _as_tensor(output: Any) -> Tensor:
    """Return the hidden states of a block's output: a tensor, or the first of a tuple in older releases."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another function for a while; hooks and attributes stay as they are."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def starting_from(model: EditableModel, layer: int, states_BTH: Tensor) -> Iterator[None]:
    """Let block `layer` be the first that computes: it is given `states_BTH`, the blocks below hand on their input."""
    if layer == 0:
        raise ValueError("states before the first block are the embeddings themselves")

    def as_output(states: Tensor) -> Any:
        # GPT-J's blocks still return a tuple, and the model takes its first element.
        return (states, None) if model.blocks_return_tuples else states

    with ExitStack() as stack:
        for block in list(model.blocks)[: layer - 1]:
            stack.enter_context(_replaced_forward(block, lambda hidden_states, *_, **__: as_output(hidden_states)))
        stack.enter_context(_replaced_forward(model.blocks[layer - 1], lambda *_, **__: as_output(states_BTH)))
        yield


def run_to(
    model: EditableModel,
    batch: Batch,
    last: int,
    *,
    first: int = 0,
    states_BTH: Tensor | None = None,
    seen: Sequence[int] = (),
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Run blocks `first` to `last` and return what was seen on the way; nothing above `last` is computed.

    Args:
        model: the model.
        batch: the rows.
        last: the last block to run.
        first: the first block to run.
        states_BTH: input of block `first`, where it is not 0.
        seen: blocks whose edited matrix's input is wanted.

    Returns:
        The inputs of the edited matrices `[B, T, I]` of the blocks in `seen`, and the outputs `[B, T, H]` of every block run.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    shape = batch.ids_BT.shape

    def keep_input(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            # OPT flattens rows and columns before its MLP.
            inputs[layer] = arguments[0].view(*shape, -1)

        return hook

    def keep_output(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            outputs[layer] = _as_tensor(output)
            if layer == last:
                raise _StopForwardError

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if states_BTH is not None:
            stack.enter_context(starting_from(model, first, states_BTH))
        for layer in seen:
            handle = model.matrix(layer).register_forward_pre_hook(keep_input(layer))
            stack.callback(handle.remove)
        for layer in range(first, last + 1):
            handle = model.blocks[layer].register_forward_hook(keep_output(layer))
            stack.callback(handle.remove)
        with suppress(_StopForwardError):
            model.network(
                input_ids=batch.ids_BT,
                attention_mask=batch.mask_BT,
                position_ids=batch.positions_BT,
                use_cache=False,
            )
    return inputs, outputs


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of the columns before the subject's last token: read by every step, changed by none."""

    def __init__(self, length: int, keys: Tensor | None, values: Tensor | None) -> None:
        super().__init__()
        self.length = length
        self.keys = keys
        self.values = values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix with the new states behind it, and keep the prefix as it was."""
        assert self.keys is not None and self.values is not None
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of columns before the subject's last token, also for blocks that do not run."""
        return self.length


class Upper:
    """What blocks above `layer` need in order to run again and again from the subject's last token on.

    The states of a batch are computed once: the output of block `layer` from the subject's last token on, and for every
    block above it the keys and values of the columns before, which no shift at that token can change.

    Attributes:
        states_BSH: output of block `layer` from the subject's last token on.
    """

    def __init__(self, model: EditableModel, layer: int, column: int, batch: Batch, states_BSH: Tensor) -> None:
        self.model = model
        self.layer = layer
        self.column = column
        self.batch = batch
        self.states_BSH = states_BSH
        self._prefix: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def compute(cls, model: EditableModel, batch: Batch, layer: int, column: int) -> Upper:
        """Run a batch once, whose subjects' last tokens share the column `column`."""
        cache = DynamicCache()
        outputs: list[Tensor] = []
        handle = model.blocks[layer].register_forward_hook(
            lambda _module, _arguments, output: outputs.append(_as_tensor(output))
        )
        nowhere = torch.zeros((1, 2), dtype=torch.long, device=model.device)
        try:
            with torch.no_grad(), gathered_head(model, nowhere):
                model.network(
                    input_ids=batch.ids_BT,
                    attention_mask=batch.mask_BT,
                    position_ids=batch.positions_BT,
                    past_key_values=cache,
                    use_cache=True,
                )
        finally:
            handle.remove()
        upper = cls(model, layer, column, batch, outputs[0][:, column:].clone())
        for index in range(layer + 1, len(model.blocks)):
            kept = cache.layers[index]
            upper._prefix[index] = (kept.keys[..., :column, :].clone(), kept.values[..., :column, :].clone())
        return upper

    def select(self, rows: Tensor) -> Upper:
        """Return the same for some rows only, `[B]` indices; columns that only the others needed are left out."""
        width = int(self.batch.mask_BT[rows, self.column :].sum(1).max())
        stop = self.column + width
        batch = Batch(
            ids_BT=self.batch.ids_BT[rows, :stop],
            mask_BT=self.batch.mask_BT[rows, :stop],
            positions_BT=self.batch.positions_BT[rows, :stop],
        )
        upper = Upper(self.model, self.layer, self.column, batch, self.states_BSH[rows, :width])
        upper._prefix = {index: (keys[rows], values[rows]) for index, (keys, values) in self._prefix.items()}
        return upper

    def logits(self, states_BSH: Tensor, places_M2: Tensor) -> Tensor:
        """Return the logits `[M, vocabulary]` when block `layer` gives `states_BSH`, through which gradients flow.

        Args:
            states_BSH: output of block `layer` from the subject's last token on.
            places_M2: `[M, 2]`: row, and column counted from the subject's last token.
        """
        cache = Cache(
            layers=[
                _PrefixLayer(self.column, *self._prefix.get(index, (None, None)))
                for index in range(len(self.model.blocks))
            ]
        )
        with starting_from(self.model, self.layer + 1, states_BSH), gathered_head(self.model, places_M2):
            output = self.model.network(
                input_ids=self.batch.ids_BT[:, self.column :],
                attention_mask=self.batch.mask_BT,
                position_ids=self.batch.positions_BT[:, self.column :],
                past_key_values=cache,
                use_cache=True,
            )
        logits = output.logits
        assert isinstance(logits, Tensor)
        return logits[0]


@contextmanager
def gathered_head(model: EditableModel, places_M2: Tensor) -> Iterator[None]:
    """Let the language-model head see only some positions: its output becomes `[1, M, vocabulary]`.

    The head is the largest matrix of many models, and almost all of its outputs would be thrown away.
    """
    head = model.network.get_output_embeddings()

    def gather(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        return (arguments[0][places_M2[:, 0], places_M2[:, 1]].unsqueeze(0),)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: EditableModel, batch: Batch, places_M2: Tensor) -> Tensor:
    """Return the logits `[M, vocabulary]` of whole rows at some places, without gradients."""
    with torch.no_grad(), gathered_head(model, places_M2):
        output = model.network(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
        )
    logits = output.logits
    assert isinstance(logits, Tensor)
    return logits[0]
