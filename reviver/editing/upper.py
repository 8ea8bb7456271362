"""The blocks above the edited ones, made ready to run again and again from the subject's last token on.

Each step of the search for targets costs only what depends on the shift: the blocks above the last edited one, from the
subject's last token on. All else is computed once: the states below, the keys and values of the tokens before, and the
masks and rotary tables, which the model's own forward makes and hands to its blocks.

Legend: B rows, T columns, S columns from the subject's last token on, H hidden width, M gathered positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reviver.editing.model import EditableModel
from reviver.editing.propagation import (
    Past,
    gathered_head,
    gathered_mlp,
    keys_and_values,
    no_past,
    replaced_forward,
    run_to,
    starting_from,
)
from reviver.editing.recomputation import recomputing
from reviver.editing.tokens import Batch


class Upper:
    """What the blocks above `layer` need in order to run again and again from the subject's last token on.

    Args:
        model: the model.
        layer: the block below.
        batch: the tokens from the subject's last one on.
        past: those before, with the keys and values of the blocks above.
        states_BSH: output of block `layer` from the subject's last token on.
    """

    def __init__(self, model: EditableModel, layer: int, batch: Batch, past: Past, states_BSH: Tensor) -> None:
        self.model = model
        self.layer = layer
        self.batch = batch
        self.past = past
        self.states_BSH = states_BSH
        self._cache = past.cache(len(model.blocks))
        # With what the model called each block above, its hidden states left out.
        self._calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    @classmethod
    def compute(cls, model: EditableModel, batch: Batch, layer: int, column: int, *, past: Past | None = None) -> Upper:
        """Run a batch once, whose subjects' last tokens share the column `column`.

        Args:
            model: the model.
            batch: the rows.
            layer: the block whose output will be changed.
            column: counted in the batch.
            past: columns before the batch's, with the keys and values of all blocks.
        """
        _, outputs = run_to(model, batch, layer, past=past)
        states_BTH = outputs[layer]
        before, above = past or no_past(batch), range(layer + 1, len(model.blocks))
        kept = {index: before.kept[index] for index in above} if before.width else {}
        if column and above:
            middle = batch.columns(0, column)
            new, _ = keys_and_values(
                model, middle, above[-1], first=layer + 1, states_BTH=states_BTH[:, :column], past=past
            )
            kept = {
                index: (torch.cat([kept[index][0], keys], -2), torch.cat([kept[index][1], values], -2))
                if index in kept
                else (keys, values)
                for index, (keys, values) in new.items()
            }
            before = Past(before.mask_before(middle), kept)
        elif column:
            before = Past(before.mask_before(batch.columns(0, column)), kept)
        return cls(model, layer, batch.columns(column), before, states_BTH[:, column:].clone())

    def select(self, rows_B: Tensor) -> Upper:
        """Return the same for some rows only, by index; columns that only the others needed are left out."""
        batch = self.batch.rows(rows_B)
        width = int(batch.mask_BT.sum(1).max())
        return Upper(
            self.model,
            self.layer,
            batch.columns(0, width),
            self.past.rows(rows_B),
            self.states_BSH[rows_B, :width],
        )

    def logits(self, states_BSH: Tensor, places_M2: Tensor) -> Tensor:
        """Return the logits `[M, vocabulary]` when block `layer` gives `states_BSH`, through which gradients flow.

        Args:
            states_BSH: output of block `layer` from the subject's last token on.
            places_M2: `[M, 2]`: row, and column counted from the subject's last token; each place once.
        """
        # The mask is made once: the model looks into it to see whether it is needed, which on a GPU waits for the device.
        replayed = bool(self._calls)
        with ExitStack() as stack:
            stack.enter_context(starting_from(self.model, self.layer + 1, states_BSH))
            stack.enter_context(self._replayed() if replayed else self._recorded())
            if self.layer + 1 < len(self.model.blocks):
                stack.enter_context(gathered_mlp(self.model, places_M2))
            stack.enter_context(recomputing(self.model, self.layer + 1))
            stack.enter_context(gathered_head(self.model, places_M2))
            output = self.model.network(
                input_ids=self.batch.ids_BT,
                attention_mask=None if replayed else self.past.mask_before(self.batch),
                position_ids=self.batch.positions_BT,
                past_key_values=self._cache,
                use_cache=True,
            )
        logits = output.logits
        assert isinstance(logits, Tensor)
        return logits[0]

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Note with what the model calls its upper blocks."""

        def note(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                kept = {name: value for name, value in keywords.items() if name != "hidden_states"}
                self._calls[index] = (arguments[1:], kept)

            return hook

        with ExitStack() as stack:
            for index in range(self.layer + 1, len(self.model.blocks)):
                hook = self.model.blocks[index].register_forward_pre_hook(note(index), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        """Let the upper blocks run with what they were called with before, other hidden states apart."""

        def again(index: int) -> Callable[..., Any]:
            forward = self.model.blocks[index].forward
            positional, named = self._calls[index]

            def replay(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
                return forward(hidden_states, *positional, **named)

            return replay

        with ExitStack() as stack:
            for index in self._calls:
                stack.enter_context(replaced_forward(self.model.blocks[index], again(index)))
            yield
