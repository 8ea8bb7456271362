"""Minimal pairs (BLiMP, arXiv 1912.00582): does a model hold the grammatical sentence of two for the more probable one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reviver.editing.model import EditableModel
from reviver.editing.tokens import token_ids
from reviver.errors import EvaluationError
from reviver.evaluation.pair_file import MinimalPair
from reviver.evaluation.scores import row_nlls


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """Shares of pairs whose good sentence has the higher probability, summed over its tokens.

    Attributes:
        accuracy: over all pairs.
        paradigms: by paradigm, in the order of their first pairs.
        pairs: how many there are.
    """

    accuracy: float
    paradigms: Mapping[str, float]
    pairs: int


def pair_scores(model: EditableModel, pairs: Sequence[MinimalPair]) -> PairScores:
    """Measure a model on some pairs.

    A text is opened as the model's texts are: by the token that its tokenizer puts first, else by its beginning-of-text or
    end-of-text token, so that the first word counts too. A model that has none of them is not asked for the first token.

    Raises:
        EvaluationError: a sentence is longer than the model's window.
    """
    rows = _rows(model, [text for pair in pairs for text in (pair.good, pair.bad)])
    for good_row, bad_row, pair in zip(rows[::2], rows[1::2], pairs, strict=True):
        longest = max(len(good_row), len(bad_row))
        if longest > model.window:
            raise EvaluationError(
                f"a sentence of the pair on line {pair.line} has {longest} tokens, more than the model's window of {model.window}",
                hint="leave such pairs out of the file",
            )
    # A sentence of one token, in a model that opens texts with none, says nothing and costs nothing.
    scored = [index for index, row in enumerate(rows) if len(row) > 1]
    nlls = [0.0] * len(rows)
    for index, nll in zip(scored, row_nlls(model, [rows[index] for index in scored]), strict=True):
        nlls[index] = nll
    flags: dict[str, list[bool]] = {}
    for pair, good, bad in zip(pairs, nlls[::2], nlls[1::2], strict=True):
        flags.setdefault(pair.paradigm, []).append(good < bad)
    return PairScores(
        accuracy=sum(map(sum, flags.values())) / len(pairs),
        paradigms={name: sum(own) / len(own) for name, own in flags.items()},
        pairs=len(pairs),
    )


def _rows(model: EditableModel, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = model.tokenizer
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = []
    for ids in token_ids(tokenizer, texts):
        opened = opening is None or (ids and ids[0] == opening)
        rows.append(list(ids) if opened else [opening, *ids])
    return rows
