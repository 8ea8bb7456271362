"""ZsRE's measures: the share of target tokens that a model predicts under teacher forcing (De Cao et al. 2021; MEMIT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reviver.editing.model import EditableModel
from reviver.evaluation.counterfact import neighbor_answers
from reviver.evaluation.scores import score_continuations
from reviver.facts.fact import Fact
from reviver.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ZsreScores:
    """Mean shares over prompts, each prompt counting alike whatever the length of its target; None over nothing.

    Attributes:
        rewrite: of the new target's tokens after the facts' own prompts.
        rephrase: of the new target's tokens after their paraphrases.
        locality: of the right answer's tokens after neighbours, whose answer an edit must not change.
        facts, rephrases, localities: how many prompts of each kind were scored.
    """

    rewrite: float | None
    rephrase: float | None
    locality: float | None
    facts: int
    rephrases: int
    localities: int


def zsre_scores(model: EditableModel, facts: Sequence[Fact], *, progress: Progress | None = None) -> ZsreScores:
    """Measure some facts.

    Raises:
        FactsError: a prompt is longer than the model's window.
    """
    rewrites = [(fact.text, fact.target_new) for fact in facts]
    rephrases = [(prompt, fact.target_new) for fact in facts for prompt in fact.paraphrase_prompts]
    localities = [pair for fact in facts for pair in neighbor_answers(fact)]
    scores = score_continuations(model, [*rewrites, *rephrases, *localities], progress=progress)
    shares = [score.share for score in scores]
    first, second = len(rewrites), len(rewrites) + len(rephrases)
    return ZsreScores(
        rewrite=_mean(shares[:first]),
        rephrase=_mean(shares[first:second]),
        locality=_mean(shares[second:]),
        facts=len(rewrites),
        rephrases=len(rephrases),
        localities=len(localities),
    )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
