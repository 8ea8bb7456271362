"""Running a part of a model: from given states, up to a block, behind columns that are done, or for some positions only.

Every architecture of transformers keeps its own masks, rotary tables and soft caps. Nothing of that is written again here: the
model's own forward runs, while blocks that are not needed hand on what they are given. So a part of a model costs what the
part costs, and is computed by exactly the code that computes the whole.

Legend: B rows, T columns, P columns before them, H hidden width, I MLP width, M gathered positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from reviver.editing.model import EditableModel
from reviver.editing.tokens import Batch

# Keys and values of one block, [B, heads, columns, width of a head].
KeysValues = tuple[Tensor, Tensor]


class _StopForwardError(Exception):
    """Raised by a hook when everything that was asked for has been seen."""


class _PastLayer(DynamicLayer):  # type: ignore[misc]
    """Puts kept columns before the ones that a block computes, and keeps itself as it was."""

    def __init__(self, width: int, kept: KeysValues | None, take: Callable[[KeysValues], None] | None) -> None:
        super().__init__()
        self.width = width
        self.kept = kept
        self.take = take
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> KeysValues:
        """Return the kept columns with the new ones behind them."""
        if self.take is not None:
            self.take((key_states, value_states))
        if self.kept is None:
            return key_states, value_states
        return torch.cat([self.kept[0], key_states], -2), torch.cat([self.kept[1], value_states], -2)

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of kept columns, also for blocks that do not run."""
        return self.width


@dataclass(frozen=True, slots=True)
class Past:
    """Columns before a batch's own, computed already.

    Attributes:
        mask_BP: 1 where there is a token.
        kept: keys and values of these columns, by block; of the blocks that shall run behind them.
    """

    mask_BP: Tensor
    kept: Mapping[int, KeysValues]

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.mask_BP.shape[1]

    def rows(self, chosen_B: Tensor) -> Past:
        """Return some rows, by index."""
        return Past(
            self.mask_BP[chosen_B],
            {index: (keys[chosen_B], values[chosen_B]) for index, (keys, values) in self.kept.items()},
        )

    def cache(self, blocks: int, takers: Mapping[int, Callable[[KeysValues], None]] | None = None) -> Cache:
        """Return the past as a model of so many blocks reads it; `takers` are shown what their block computes."""
        kept = self.kept if self.width else {}
        return Cache(
            layers=[_PastLayer(self.width, kept.get(index), (takers or {}).get(index)) for index in range(blocks)]
        )

    def mask_before(self, batch: Batch) -> Tensor:
        """Return the mask of the past and of the batch behind it, `[B, P + T]`."""
        return torch.cat([self.mask_BP, batch.mask_BT], dim=1)


def no_past(batch: Batch) -> Past:
    """Return a past of no columns."""
    return Past(batch.mask_BT[:, :0], {})


def _as_tensor(output: Any) -> Tensor:
    """Return the hidden states of a block's output: a tensor, or the first of a tuple in older releases."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another function for a while; hooks and attributes stay as they are."""
    # A function that stands in already belongs to the module itself, and not to its class.
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


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
            stack.enter_context(replaced_forward(block, lambda hidden_states, *_, **__: as_output(hidden_states)))
        stack.enter_context(replaced_forward(model.blocks[layer - 1], lambda *_, **__: as_output(states_BTH)))
        yield


def run_to(
    model: EditableModel,
    batch: Batch,
    last: int,
    *,
    first: int = 0,
    states_BTH: Tensor | None = None,
    seen: Sequence[int] = (),
    past: Past | None = None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Run blocks `first` to `last` and return what was seen on the way; nothing above `last` is computed.

    Args:
        model: the model.
        batch: the rows.
        last: the last block to run.
        first: the first block to run.
        states_BTH: input of block `first`, where it is not 0.
        seen: blocks whose edited matrix's input is wanted.
        past: columns before the batch's, with the keys and values of blocks `first` to `last`.

    Returns:
        The inputs of the edited matrices `[B, T, I]` of the blocks in `seen`, and the outputs `[B, T, H]` of every block run.
    """
    inputs: dict[int, Tensor] = {}
    shape = batch.ids_BT.shape

    def keep_input(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            # OPT flattens rows and columns before its MLP.
            inputs[layer] = arguments[0].view(*shape, -1)

        return hook

    with ExitStack() as stack:
        for layer in seen:
            handle = model.matrix(layer).register_forward_pre_hook(keep_input(layer))
            stack.callback(handle.remove)
        outputs = _run(model, batch, first, last, states_BTH, past, {})
    return inputs, outputs


def keys_and_values(
    model: EditableModel,
    batch: Batch,
    last: int,
    *,
    first: int = 0,
    states_BTH: Tensor | None = None,
    past: Past | None = None,
) -> tuple[dict[int, KeysValues], dict[int, Tensor]]:
    """Run blocks `first` to `last` for their keys and values; block `last` stops as soon as it has them.

    Returns:
        The keys and values of the batch's own columns by block, and the outputs `[B, T, H]` of the blocks below `last`.
    """
    taken: dict[int, KeysValues] = {}

    def take(index: int) -> Callable[[KeysValues], None]:
        def taker(new: KeysValues) -> None:
            # Views of one fused projection would keep the queries in memory as well.
            taken[index] = (new[0].contiguous(), new[1].contiguous())
            if index == last:
                raise _StopForwardError

        return taker

    outputs = _run(
        model, batch, first, last, states_BTH, past, {index: take(index) for index in range(first, last + 1)}
    )
    return taken, outputs


def _run(
    model: EditableModel,
    batch: Batch,
    first: int,
    last: int,
    states_BTH: Tensor | None,
    past: Past | None,
    takers: Mapping[int, Callable[[KeysValues], None]],
) -> dict[int, Tensor]:
    """Run blocks `first` to `last`, or until somebody has seen enough, and return the outputs of those that ended."""
    outputs: dict[int, Tensor] = {}

    def keep_output(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            outputs[layer] = _as_tensor(output)
            if layer == last:
                raise _StopForwardError

        return hook

    cache = None if past is None and not takers else (past or no_past(batch)).cache(len(model.blocks), takers)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if states_BTH is not None:
            stack.enter_context(starting_from(model, first, states_BTH))
        for layer in range(first, last + 1):
            handle = model.blocks[layer].register_forward_hook(keep_output(layer))
            stack.callback(handle.remove)
        with suppress(_StopForwardError):
            model.network(
                input_ids=batch.ids_BT,
                attention_mask=batch.mask_BT if past is None else past.mask_before(batch),
                position_ids=batch.positions_BT,
                past_key_values=cache,
                use_cache=cache is not None,
            )
    return outputs


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


@contextmanager
def gathered_mlp(model: EditableModel, places_M2: Tensor) -> Iterator[None]:
    """Let the MLP of the last block see only some positions, each once; what it adds at the others is zero.

    Nothing reads the others: the last block is above all attention, and the head sees the same positions.
    """
    path = model.family.matrix.rpartition(".")[0]
    if not path:
        # OPT has its MLP's matrices in the block itself.
        yield
        return
    block = model.blocks[-1]
    mlp = block.get_submodule(path)
    whole_block, whole_mlp = block.forward, mlp.forward
    rows_M, columns_M = places_M2[:, 0], places_M2[:, 1]

    def gathered(states_BTH: Tensor) -> Tensor:
        changed_MH = whole_mlp(states_BTH[rows_M, columns_M].unsqueeze(0))[0]
        return torch.zeros_like(states_BTH).index_put((rows_M, columns_M), changed_MH)

    def run(*arguments: Any, **named: Any) -> Any:
        # Within the block's run, which may be done again when this context has ended (see `recomputation`).
        with replaced_forward(mlp, gathered):
            return whole_block(*arguments, **named)

    with replaced_forward(block, run):
        yield


def logits_at(model: EditableModel, batch: Batch, places_M2: Tensor) -> Tensor:
    """Return the logits `[M, vocabulary]` of whole rows at some places, without gradients."""
    with torch.no_grad(), gathered_head(model, places_M2):
        output = model.network(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
        )
    logits = output.logits
    assert isinstance(logits, Tensor)
    return logits[0]
