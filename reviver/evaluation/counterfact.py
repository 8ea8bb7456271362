"""CounterFact's measures (Meng et al. 2022, arXiv 2202.05262), each prompt scored with the new and with the true target.

Shares are over prompts, so that a fact with more paraphrases weighs more. A prompt whose two targets are the same text, or of
which only one is known, is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reviver.editing.model import EditableModel
from reviver.evaluation.scores import Score, score_continuations
from reviver.facts.fact import Fact
from reviver.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One prompt: what the model thinks of the target that is wanted after it, and of the other one.

    Attributes:
        wanted: the new target after the fact's prompt or a paraphrase, the true answer after a neighbour.
        other: the target that it should win against, where there is one.
    """

    wanted: Score
    other: Score | None

    @property
    def wins(self) -> bool:
        """Whether the wanted target has the lower mean-token negative log-likelihood."""
        return self.other is not None and self.wanted.nll < self.other.nll

    @property
    def magnitude(self) -> float:
        """How much more probable the wanted target is: the difference of `exp(−nll)`."""
        return 0.0 if self.other is None else self.wanted.probability - self.other.probability


@dataclass(frozen=True, slots=True, kw_only=True)
class FactMeasure:
    """One fact as a model answers it."""

    rewrite: Compared
    paraphrases: tuple[Compared, ...]
    neighbors: tuple[Compared, ...]
    """Of the neighbours whose right answer is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterFactScores:
    """The measures over some facts; one over nothing is None.

    Attributes:
        efficacy: share of facts whose new target greedy decoding would write, all of it (rewrite accuracy).
        es: share of facts whose new target is more probable than the true one, of those where the two are different texts.
        efficacy_magnitude: mean difference of the two.
        paraphrase, ps, paraphrase_magnitude: likewise over the paraphrases.
        neighbors_kept: of the neighbours that the base answers rightly, the share still answered so.
        ns: share of neighbours whose true answer is more probable than the new target. Edits that failed raise it, so that
            it is None where `es` is.
        neighbor_magnitude: mean difference of the two.
        neighbor_accuracy: share of neighbours that are answered rightly, whether the base does so or not.
        s: harmonic mean of `es`, `ps` and `ns`.
        facts, paraphrases, neighbors: how many prompts of each kind were scored.
        facts_compared: how many facts `es` counts.
        neighbors_known: how many neighbours the base answers rightly.
    """

    efficacy: float | None
    es: float | None
    efficacy_magnitude: float | None
    paraphrase: float | None
    ps: float | None
    paraphrase_magnitude: float | None
    neighbors_kept: float | None
    ns: float | None
    neighbor_magnitude: float | None
    neighbor_accuracy: float | None
    s: float | None
    facts: int
    facts_compared: int
    paraphrases: int
    neighbors: int
    neighbors_known: int


def measure_facts(
    model: EditableModel, facts: Sequence[Fact], *, progress: Progress | None = None
) -> list[FactMeasure]:
    """Score every prompt of every fact, in one pass that is ordered by length.

    Raises:
        FactsError: a prompt is longer than the model's window.
    """
    pairs: list[tuple[str, str]] = []
    for fact in facts:
        for prompt, wanted, other in _prompts(fact):
            pairs.append((prompt, wanted))
            if other is not None:
                pairs.append((prompt, other))
    scores = iter(score_continuations(model, pairs, progress=progress))
    measures = []
    for fact in facts:
        compared = [
            Compared(wanted=next(scores), other=None if other is None else next(scores))
            for _, _, other in _prompts(fact)
        ]
        count = 1 + len(fact.paraphrase_prompts)
        measures.append(
            FactMeasure(rewrite=compared[0], paraphrases=tuple(compared[1:count]), neighbors=tuple(compared[count:]))
        )
    return measures


def _prompts(fact: Fact) -> Iterator[tuple[str, str, str | None]]:
    """Yield every prompt of a fact with the target that is wanted after it and the one to compare it with."""
    true = compared_target(fact)
    for prompt in (fact.text, *fact.paraphrase_prompts):
        yield prompt, fact.target_new, true
    for prompt, answer in neighbor_answers(fact):
        yield prompt, answer, fact.target_new if answer != fact.target_new else None


def compared_target(fact: Fact) -> str | None:
    """Return the target that a fact's new one is compared with: the true one, where that is another text."""
    return fact.target_true if fact.target_true != fact.target_new else None


def neighbor_answers(fact: Fact) -> list[tuple[str, str]]:
    """Return the neighbours of a fact whose right answer is known, each with it."""
    known = [(probe.prompt, probe.answer or fact.target_true) for probe in fact.neighborhood_prompts]
    return [(prompt, answer) for prompt, answer in known if answer is not None]


def neighbors_said(
    model: EditableModel, facts: Sequence[Fact], *, progress: Progress | None = None
) -> list[tuple[bool, ...]]:
    """Return for each fact which of its neighbours a model answers rightly, exactly: the base's part of `neighbors_kept`."""
    answers = [neighbor_answers(fact) for fact in facts]
    scores = iter(score_continuations(model, [pair for pairs in answers for pair in pairs], progress=progress))
    return [tuple(next(scores).exact for _ in pairs) for pairs in answers]


def counterfact_scores(measures: Sequence[FactMeasure], base_said: Sequence[Sequence[bool]]) -> CounterFactScores:
    """Return the measures over some facts.

    Args:
        measures: by `measure_facts`.
        base_said: by `neighbors_said` of the base, for the same facts in the same order.
    """
    rewrites = [one.rewrite for one in measures]
    paraphrases = [one for measure in measures for one in measure.paraphrases]
    neighbors = [one for measure in measures for one in measure.neighbors]
    known = [was for said in base_said for was in said]
    kept = [one.wanted.exact for one, was in zip(neighbors, known, strict=True) if was]
    es, ps = _wins(rewrites), _wins(paraphrases)
    ns = None if es is None else _wins(neighbors)
    return CounterFactScores(
        efficacy=_mean([one.wanted.exact for one in rewrites]),
        es=es,
        efficacy_magnitude=_magnitude(rewrites),
        paraphrase=_mean([one.wanted.exact for one in paraphrases]),
        ps=ps,
        paraphrase_magnitude=_magnitude(paraphrases),
        neighbors_kept=_mean(kept),
        ns=ns,
        neighbor_magnitude=None if es is None else _magnitude(neighbors),
        neighbor_accuracy=_mean([one.wanted.exact for one in neighbors]),
        s=_harmonic_mean((es, ps, ns)),
        facts=len(rewrites),
        facts_compared=sum(one.other is not None for one in rewrites),
        paraphrases=len(paraphrases),
        neighbors=len(neighbors),
        neighbors_known=len(kept),
    )


def _wins(compared: Sequence[Compared]) -> float | None:
    return _mean([one.wins for one in compared if one.other is not None])


def _magnitude(compared: Sequence[Compared]) -> float | None:
    return _mean([one.magnitude for one in compared if one.other is not None])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _harmonic_mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return None
    return len(known) / math.fsum(1 / share for share in known) if all(known) else 0.0
