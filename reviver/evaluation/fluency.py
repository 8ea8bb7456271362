"""Fluency: how varied the text is that a model writes by itself; a collapsed model repeats itself (ROME, arXiv 2202.05262).

Words are runs of letters and digits, or single other signs.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reviver.editing.generation import sample
from reviver.editing.model import EditableModel
from reviver.editing.prefixes import OPENINGS
from reviver.editing.tokens import chunks_by_tokens, tokenize_rows
from reviver.facts.fact import Fact

TOKENS = 100
"""Tokens of each generation."""

PROMPTS = 100
"""How many prompts are drawn where there are more."""

TOP_K = 5
"""Each token is drawn from so many of the most probable, as in ROME's code."""

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""The weight of the entropy of n-grams, by n (ROME's code)."""

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FluencyScores:
    """Means over all generations, in bits.

    Attributes:
        fluency: weighted mean of the two entropies.
        bigram_entropy, trigram_entropy: of the n-grams of each text.
        texts: how many texts were written.
    """

    fluency: float
    bigram_entropy: float
    trigram_entropy: float
    texts: int


def fluency_prompts(facts: Sequence[Fact], *, seed: int) -> tuple[str, ...]:
    """Return the prompts to write on from: a seeded draw of the facts' own, or plain openings where there are no facts."""
    texts = list(dict.fromkeys(fact.text for fact in facts))
    if not texts:
        return OPENINGS
    return tuple(texts if len(texts) <= PROMPTS else random.Random(seed).sample(texts, PROMPTS))


def fluency_scores(
    model: EditableModel, prompts: Sequence[str], *, seed: int, tokens: int = TOKENS, token_budget: int = 16384
) -> FluencyScores:
    """Let the model write on from every prompt and measure what it wrote, the prompts aside.

    Args:
        model: the model.
        prompts: at least one text, none empty.
        seed: of the draws; the same prompts and seed give the same texts on the same machine.
        tokens: length of each text.
        token_budget: padded tokens in one batch at most.

    Raises:
        FactsError: a prompt is longer than the model's window.
        NumericsError: the model gives no probabilities.
    """
    tokenized = tokenize_rows(model.tokenizer, prompts, [""] * len(prompts), window=model.window)
    rows = [row.ids for row in tokenized]
    length = max(1, min(tokens, model.window - max(map(len, rows))))
    entropies = []
    for number, group in enumerate(chunks_by_tokens([len(row) + length for row in rows], token_budget)):
        written = sample(model, [rows[index] for index in group], tokens=length, seed=seed + number, top_k=TOP_K)
        for ids in written:
            words = _WORD.findall(model.tokenizer.decode(ids, skip_special_tokens=True))
            entropies.append({n: ngram_entropy(words, n) for n in WEIGHTS})
    means = {n: math.fsum(one[n] for one in entropies) / len(entropies) for n in WEIGHTS}
    return FluencyScores(
        fluency=math.fsum(weight * means[n] for n, weight in WEIGHTS.items()) / sum(WEIGHTS.values()),
        bigram_entropy=means[2],
        trigram_entropy=means[3],
        texts=len(entropies),
    )


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Return the entropy of a text's n-grams in bits: 0 where it has only one of them, or none."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return math.fsum(-count / total * math.log2(count / total) for count in counts.values()) if total else 0.0
