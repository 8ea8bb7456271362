"""Perplexity on given text: the oldest measure of what a model still knows of language.

Legend: B rows, M places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from reviver.editing.model import EditableModel
from reviver.editing.propagation import logits_at
from reviver.editing.tokens import chunks_by_tokens, make_batch
from reviver.errors import FactsError


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
    window = min(length, model.window)
    rows = []
    for ids in model.tokenizer(list(texts))["input_ids"]:
        rows += [ids[start : start + window] for start in range(0, len(ids), window)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise FactsError("there is no text to measure perplexity on", hint="give a text of at least two tokens")
    total, count = 0.0, 0
    for group in chunks_by_tokens([len(row) for row in rows], token_budget):
        chosen = [rows[index] for index in group]
        batch = make_batch(chosen, model.device)
        places = [(slot, column) for slot, row in enumerate(chosen) for column in range(len(row) - 1)]
        expected = [token for row in chosen for token in row[1:]]
        logits_MV = logits_at(model, batch, torch.tensor(places, device=model.device)).float()
        nll_M = torch.nn.functional.cross_entropy(
            logits_MV, torch.tensor(expected, device=model.device), reduction="none"
        )
        total += float(nll_M.double().sum())
        count += len(expected)
    return math.exp(total / count)
