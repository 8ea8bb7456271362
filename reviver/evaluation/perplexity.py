"""Perplexity on given text: the oldest measure of what a model still knows of language."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reviver.editing.corpus import WrittenCorpus
from reviver.editing.model import EditableModel
from reviver.errors import FactsError
from reviver.evaluation.scores import row_nlls

WRITTEN_SEED = 7_919
"""The seed of the text that a base writes for this measure: another than that of the text behind its second moments."""

WRITTEN_LENGTH = 128
"""The length of its rows in tokens."""


def perplexity(model: EditableModel, texts: Sequence[str], *, length: int = 512, token_budget: int = 16384) -> float:
    """Return `exp` of the mean negative log-likelihood of all tokens but the first of each window, in nats.

    Each text is read by itself, in windows of at most `length` tokens that don't overlap.

    Args:
        model: the model.
        texts: documents.
        length: tokens of a window at most; the model's own window if that is smaller.
        token_budget: padded tokens in one batch at most.

    Raises:
        FactsError: there is no text of at least two tokens.
    """
    return row_perplexity(model, text_rows(model, texts, length=length), token_budget=token_budget)


def text_rows(model: EditableModel, texts: Sequence[str], *, length: int = 512) -> list[list[int]]:
    """Return the windows of some documents as token ids: at most `length` and at least two tokens a row.

    Raises:
        FactsError: there is none.
    """
    window = min(length, model.window)
    rows: list[list[int]] = []
    for ids in model.tokenizer(list(texts))["input_ids"] if texts else ():
        rows += [ids[start : start + window] for start in range(0, len(ids), window)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise FactsError("there is no text to measure perplexity on", hint="give a text of at least two tokens")
    return rows


def written_rows(model: EditableModel) -> list[Sequence[int]]:
    """Return ordinary text by the model itself, sampled with a fixed seed, for bases whose users give no text.

    On it the base's own perplexity is the entropy of what it writes, and a version's is larger by its divergence from the base.
    """
    return list(next(WrittenCorpus(seed=WRITTEN_SEED, length=WRITTEN_LENGTH).batches(model, 0)))


def row_perplexity(model: EditableModel, rows: Sequence[Sequence[int]], *, token_budget: int = 16384) -> float:
    """Return the perplexity over some rows of token ids; infinity where it is beyond a float's range."""
    mean = sum(row_nlls(model, rows, token_budget=token_budget)) / sum(len(row) - 1 for row in rows)
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
