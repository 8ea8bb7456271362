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
from torch import Tensor, nn

from reviver.editing.beginnings import Beginnings
from reviver.editing.editors.solve import independent
from reviver.editing.model import EditableModel
from reviver.editing.propagation import run_to
from reviver.editing.targets import fact_rows
from reviver.editing.tokens import Batch, TokenRow, chunks_by_tokens, make_batch
from reviver.facts.fact import Fact


@dataclass(slots=True)
class _Chunk:
    """Rows that are propagated together: their batch, their facts and contexts, and the states they have reached."""

    facts: list[int]
    contexts: list[int]
    batch: Batch
    first: int = 0
    states_BTH: Tensor | None = None

    def run(
        self, model: EditableModel, layer: int, last: int, beginnings: Beginnings | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the matrix inputs `[B, I]` at block `layer` and the outputs `[B, H]` of block `last`."""
        past = None if beginnings is None else beginnings.past(self.contexts, self.first, last)
        inputs, outputs = run_to(
            model, self.batch, last, first=self.first, states_BTH=self.states_BTH, seen=(layer,), past=past
        )
        if layer > self.first:
            self.first, self.states_BTH = layer, outputs[layer - 1]
        return inputs[layer][:, -1], outputs[last][:, -1]


class SubjectStates:
    """The states of all facts of a round at their subjects' last tokens, followed upwards through the edited blocks.

    Every rank follows its share of the facts. One such object is in use at a time.

    Args:
        model: the model whose weights are changed between calls.
        facts: N facts.
        prefixes: texts before the prompt; the plain prompt is always a context besides.
        token_budget: padded tokens in one batch at most.
    """

    def __init__(
        self, model: EditableModel, facts: Sequence[Fact], prefixes: Sequence[str], *, token_budget: int = 16384
    ) -> None:
        model.ranks.tell(
            "states", facts=[fact.to_record() for fact in facts], prefixes=list(prefixes), token_budget=token_budget
        )
        self.model = model
        self.count = len(facts)
        self._contexts = len(prefixes)
        self._budget = token_budget
        self._beginnings: Beginnings | None = None
        self._prefixed: list[_Chunk] = []
        share = model.ranks.share(facts)
        self._share = len(share)
        self._plain = self._chunks(fact_rows(model, share, ("",), targets=False), (0,))
        if prefixes and share:
            rows = fact_rows(model, share, tuple(prefixes), targets=False)
            self._beginnings = Beginnings(model, [rows[context :: len(prefixes)] for context in range(len(prefixes))])
            self._prefixed = self._chunks(rows, self._beginnings.lengths)

    def _chunks(self, rows: Sequence[TokenRow], starts: Sequence[int]) -> list[_Chunk]:
        """Return the rows, one context after the other for each fact, from the given token on up to the subject's last."""
        ids = [row.ids[starts[index % len(starts)] : row.subject + 1] for index, row in enumerate(rows)]
        chunks = []
        for group in chunks_by_tokens([len(row) for row in ids], self._budget):
            contexts = [index % len(starts) for index in group]
            batch = make_batch(
                [ids[index] for index in group],
                self.model.device,
                align=[len(ids[index]) - 1 for index in group],
                starts=[starts[context] for context in contexts],
            )
            chunks.append(_Chunk(facts=[index // len(starts) for index in group], contexts=contexts, batch=batch))
        return chunks

    def measure(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys at block `layer` and the states at the last edited block, under the weights as they are now.

        Blocks must be asked for in ascending order; the weights of blocks below `layer` may have changed since the last
        call only from that call's block on.

        Returns:
            Keys `[I, N]`, float32: the plain prompt weighs one half, the prefixed ones share the other. States `[O, N]`,
            float32, under the plain prompt. On a follower, those of its own share.
        """
        if not self.count:
            raise ValueError("a round has at least one fact")
        model, ranks = self.model, self.model.ranks
        ranks.tell("measure", layer=layer)
        key_NI, state_NO = self._measure_share(layer)
        parts = ranks.gather([key_NI, state_NO])
        if ranks.leads:
            key_NI = key_NI.new_empty((self.count, key_NI.shape[1]))
            state_NO = state_NO.new_empty((self.count, state_NO.shape[1]))
            for rank, (keys, states) in enumerate(parts):
                key_NI[rank :: ranks.size], state_NO[rank :: ranks.size] = (
                    keys.to(model.device),
                    states.to(model.device),
                )
        return key_NI.T.contiguous(), state_NO.T.contiguous()

    def _measure_share(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys `[N, I]` and states `[N, O]` of this rank's share of the facts."""
        model, last = self.model, self.model.layers[-1]
        plain_NI = torch.zeros((self._share, model.inner_width(layer)), device=model.device)
        state_NO = torch.zeros((self._share, model.outer_width(last)), device=model.device)
        for chunk in self._plain:
            keys, states = chunk.run(model, layer, last)
            index = torch.tensor(chunk.facts, device=model.device)
            plain_NI[index], state_NO[index] = keys.float(), states.float()
        if self._beginnings is None:
            return plain_NI, state_NO
        prefixed_NI = torch.zeros_like(plain_NI)
        self._beginnings.reach(layer)
        for chunk in self._prefixed:
            keys, _ = chunk.run(model, layer, layer, self._beginnings)
            prefixed_NI.index_add_(0, torch.tensor(chunk.facts, device=model.device), keys.float())
        return (plain_NI + prefixed_NI / self._contexts) / 2, state_NO


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
    rms_N = output_ON.pow(2).mean(0).sqrt()
    return residual_ON * rms_N[None, :] / _gain(model, layer, norm)[:, None]


def closed_directions(model: EditableModel, layer: int, output_OK: Tensor) -> Tensor:
    """Return the directions of the residual stream into which a matrix cannot write if it keeps out of some of its outputs.

    Without a norm behind the matrix they are those outputs. With one (see `through_post_norm`) the stream moves by `r` where the
    matrix writes along `r / g`, which must be orthogonal to U: so `r` must be to `U / g`.

    Args:
        model: the model.
        layer: the edited block.
        output_OK: the K outputs U, orthonormal.

    Returns:
        Orthonormal directions `[O, K]`, float32; fewer where a gain of zero leaves less.
    """
    norm = model.post_norm(layer)
    closed_OK = output_OK.to(model.device, torch.float64)
    if norm is not None:
        closed_OK = independent(closed_OK / _gain(model, layer, norm).double()[:, None])
    return closed_OK.float()


def _gain(model: EditableModel, layer: int, norm: nn.Module) -> Tensor:
    """Return the gain `[O]` of a norm; infinite where it is near zero and cannot be written through: left to the other blocks."""
    gain_O: Tensor = norm(
        torch.ones(model.outer_width(layer), device=model.device, dtype=model.weight(layer).dtype)
    ).float()
    return torch.where(gain_O.abs() < 1e-3 * gain_O.abs().max(), torch.inf, gain_O)
