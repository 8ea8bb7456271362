"""Keys and residuals of a round: what the edited matrices read at the subject's last token, and what is still missing there.

Rows are cut behind the subject's last token, since nothing after it can reach it; the states before an edited block are kept, so
that the next measurement begins there instead of at the embeddings; prefixed rows, which only lend their keys, stop at
the block in question.

Legend: N facts, C contexts of a fact, T columns, I MLP width, O and H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reviver.editing.model import EditableModel
from reviver.editing.propagation import run_to
from reviver.editing.targets import fact_rows
from reviver.editing.tokens import Batch, chunks_by_tokens, make_batch
from reviver.facts.fact import Fact


@dataclass(slots=True)
class _Chunk:
    """Rows that are propagated together: their batch, the facts they belong to, and the states they have reached."""

    facts: list[int]
    batch: Batch
    first: int = 0
    states_BTH: Tensor | None = None

    def run(self, model: EditableModel, layer: int, last: int) -> tuple[Tensor, Tensor]:
        """Return the matrix inputs `[B, I]` at block `layer` and the outputs `[B, H]` of block `last`."""
        inputs, outputs = run_to(model, self.batch, last, first=self.first, states_BTH=self.states_BTH, seen=(layer,))
        if layer > self.first:
            self.first, self.states_BTH = layer, outputs[layer - 1]
        return inputs[layer][:, -1], outputs[last][:, -1]


class SubjectStates:
    """The states of all facts of a round at their subjects' last tokens, followed upwards through the edited blocks.

    Args:
        model: the model whose weights are changed between calls.
        facts: N facts.
        prefixes: texts before the prompt; the plain prompt is always a context besides.
        token_budget: padded tokens in one batch at most.
    """

    def __init__(
        self, model: EditableModel, facts: Sequence[Fact], prefixes: Sequence[str], *, token_budget: int = 16384
    ) -> None:
        self.model = model
        self.count = len(facts)
        self._plain = self._chunks(facts, ("",), token_budget)
        self._prefixed = self._chunks(facts, tuple(prefixes), token_budget) if prefixes else []
        self._contexts = len(prefixes)

    def _chunks(self, facts: Sequence[Fact], prefixes: tuple[str, ...], budget: int) -> list[_Chunk]:
        rows = fact_rows(self.model, facts, prefixes, targets=False)
        ids = [row.ids[: row.subject + 1] for row in rows]
        chunks = []
        for group in chunks_by_tokens([len(row) for row in ids], budget):
            chosen = [ids[index] for index in group]
            batch = make_batch(chosen, self.model.device, align=[len(row) - 1 for row in chosen])
            chunks.append(_Chunk(facts=[index // len(prefixes) for index in group], batch=batch))
        return chunks

    def measure(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys at block `layer` and the states at the last edited block, under the weights as they are now.

        Blocks must be asked for in ascending order; the weights of blocks below `layer` may have changed since the last
        call only from that call's block on.

        Returns:
            Keys `[I, N]`, float32: the plain prompt weighs one half, the prefixed ones share the other. States `[O, N]`,
            float32, under the plain prompt.
        """
        last = self.model.layers[-1]
        width = self.model.inner_width(layer)
        plain_NI = torch.zeros((self.count, width), device=self.model.device)
        state_NO: Tensor | None = None
        for chunk in self._plain:
            keys, states = chunk.run(self.model, layer, last)
            index = torch.tensor(chunk.facts, device=self.model.device)
            plain_NI[index] = keys.float()
            if state_NO is None:
                state_NO = torch.zeros((self.count, states.shape[1]), device=self.model.device)
            state_NO[index] = states.float()
        if state_NO is None:
            raise ValueError("a round has at least one fact")
        if not self._prefixed:
            return plain_NI.T.contiguous(), state_NO.T.contiguous()
        prefixed_NI = torch.zeros_like(plain_NI)
        for chunk in self._prefixed:
            keys, _ = chunk.run(self.model, layer, layer)
            prefixed_NI.index_add_(0, torch.tensor(chunk.facts, device=self.model.device), keys.float())
        mean_NI = (plain_NI + prefixed_NI / self._contexts) / 2
        return mean_NI.T.contiguous(), state_NO.T.contiguous()


def through_post_norm(model: EditableModel, layer: int, residual_ON: Tensor, key_IN: Tensor) -> Tensor:
    """Return the residual as the edited matrix has to write it where a norm follows it (Gemma 2 and 3, OLMo 2).

    Such a norm gives `g · x / rms(x)`; written to first order, and leaving its scale as it is, `x` has to move by
    `rms(x) / g · r` for the residual stream to move by `r`. What the changed scale takes away is measured and made up for by
    the next block.

    Args:
        model: the model.
        layer: the edited block.
        residual_ON: what the residual stream shall gain.
        key_IN: keys at this block.
    """
    norm = model.post_norm(layer)
    if norm is None:
        return residual_ON
    weight = model.weight(layer).float()
    output_ON = (weight.T if model.family.transposed else weight) @ key_IN
    gain_O = norm(torch.ones(output_ON.shape[0], device=output_ON.device, dtype=model.weight(layer).dtype)).float()
    # A gain near zero cannot be written through; its direction is left to the other blocks.
    safe_O = torch.where(gain_O.abs() < 1e-3 * gain_O.abs().max(), torch.inf, gain_O)
    rms_N = output_ON.pow(2).mean(0).sqrt()
    return residual_ON * rms_N[None, :] / safe_O[:, None]
