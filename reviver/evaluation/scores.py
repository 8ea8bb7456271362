"""How probable a model holds a continuation, whether it would say it, and what it says by itself.

A continuation counts as said when every one of its tokens is the most probable one after those before it: exactly what greedy
decoding would write. Its probability is the geometric mean over its tokens, `exp(−nll)` with the mean negative
log-likelihood (the quantity that CounterFact's scores compare).

Legend: B rows, M places, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reviver.editing.generation import greedy, not_finite
from reviver.editing.model import EditableModel
from reviver.editing.propagation import logits_at
from reviver.editing.tokens import chunks_by_tokens, make_batch, tokenize_rows
from reviver.facts.fact import with_space
from reviver.progress import NullProgress, Progress

LOGIT_BUDGET = 2**27
"""How many logits are held at once where every token of a text is scored: half a gibibyte in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model thinks of one continuation.

    Attributes:
        nll: mean negative log-likelihood of its tokens, in nats.
        said: how many of its tokens the model would write greedily, given those before.
        tokens: how many tokens it has.
    """

    nll: float
    said: int
    tokens: int

    @property
    def exact(self) -> bool:
        """Whether greedy decoding writes all of it."""
        return self.said == self.tokens

    @property
    def share(self) -> float:
        """The share of its tokens that the model would write, given those before."""
        return self.said / self.tokens

    @property
    def probability(self) -> float:
        """The geometric mean probability of its tokens."""
        return math.exp(-self.nll)


def score_continuations(
    model: EditableModel,
    pairs: Sequence[tuple[str, str]],
    *,
    token_budget: int = 16384,
    progress: Progress | None = None,
) -> list[Score]:
    """Return the score of each continuation after its prompt.

    Args:
        model: the model.
        pairs: prompt and continuation; the continuation's leading space is added here.
        token_budget: padded tokens in one batch at most.
        progress: told the number of pairs that are done.

    Raises:
        FactsError: a pair is longer than the model's window.
        NumericsError: the model gives no probabilities.
    """
    rows = tokenize_rows(
        model.tokenizer,
        [prompt for prompt, _ in pairs],
        [with_space(continuation, prompt) for prompt, continuation in pairs],
        window=model.window,
    )
    scores: list[Score | None] = [None] * len(rows)
    lengths = [len(row.ids) for row in rows]
    with (progress or NullProgress()).task("prompts", total=len(rows), unit="prompts") as task:
        for group in chunks_by_tokens(lengths, token_budget):
            chosen = [rows[index] for index in group]
            batch = make_batch([row.ids for row in chosen], model.device)
            places = [
                (slot, column - 1) for slot, row in enumerate(chosen) for column in range(row.target, len(row.ids))
            ]
            expected_M = torch.tensor([token for row in chosen for token in row.target_ids], device=model.device)
            logits_MV = logits_at(model, batch, torch.tensor(places, device=model.device)).float()
            nll_M = torch.nn.functional.cross_entropy(logits_MV, expected_M, reduction="none").cpu()
            if bool(torch.isnan(nll_M).any()):
                raise not_finite()
            said_M = (logits_MV.argmax(-1) == expected_M).cpu()
            start = 0
            for index, row in zip(group, chosen, strict=True):
                count = len(row.target_ids)
                part = slice(start, start + count)
                scores[index] = Score(
                    nll=float(nll_M[part].double().mean()), said=int(said_M[part].sum()), tokens=count
                )
                start += count
            task.advance(len(group))
    return [score for score in scores if score is not None]


def row_nlls(model: EditableModel, rows: Sequence[Sequence[int]], *, token_budget: int = 16384) -> list[float]:
    """Return for each row the summed negative log-likelihood of all its tokens but the first, in nats.

    Args:
        model: the model.
        rows: token ids, at least two a row, within the model's window.
        token_budget: padded tokens in one batch at most; fewer where the vocabulary is large.

    Raises:
        NumericsError: the model gives no probabilities.
    """
    vocabulary = int(model.network.get_output_embeddings().weight.shape[0])
    sums = [0.0] * len(rows)
    for group in chunks_by_tokens([len(row) for row in rows], min(token_budget, LOGIT_BUDGET // vocabulary)):
        chosen = [rows[index] for index in group]
        batch = make_batch(chosen, model.device)
        places = [(slot, column) for slot, row in enumerate(chosen) for column in range(len(row) - 1)]
        expected_M = torch.tensor([token for row in chosen for token in row[1:]], device=model.device)
        logits_MV = logits_at(model, batch, torch.tensor(places, device=model.device)).float()
        nll_M = torch.nn.functional.cross_entropy(logits_MV, expected_M, reduction="none").cpu().double()
        if bool(torch.isnan(nll_M).any()):
            raise not_finite()
        start = 0
        for index, row in zip(group, chosen, strict=True):
            sums[index] = float(nll_M[start : start + len(row) - 1].sum())
            start += len(row) - 1
    return sums


def answers(model: EditableModel, prompts: Sequence[str], *, tokens: int = 8, token_budget: int = 16384) -> list[str]:
    """Return what the model writes greedily after each prompt, without leading or trailing space.

    Args:
        model: the model.
        prompts: texts.
        tokens: how many tokens to write at most; less after a prompt that all but fills the model's window.
        token_budget: padded tokens in one batch at most.

    Raises:
        FactsError: a prompt is longer than the model's window.
        NumericsError: the model gives no probabilities.
    """
    rows = tokenize_rows(model.tokenizer, prompts, [""] * len(prompts), window=model.window)
    # The last token that is written need not be read.
    rooms = [min(tokens, model.window - len(row.ids) + 1) for row in rows]
    texts = [""] * len(rows)
    for room in sorted(set(rooms)):
        same = [index for index, own in enumerate(rooms) if own == room]
        for group in chunks_by_tokens([len(rows[index].ids) + room for index in same], token_budget):
            chosen = [same[place] for place in group]
            written = greedy(model, [rows[index].ids for index in chosen], tokens=room)
            for index, ids in zip(chosen, written, strict=True):
                texts[index] = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return texts
