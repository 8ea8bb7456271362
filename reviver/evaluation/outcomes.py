"""What became of each fact: probabilities and answers before and after, and whether the edit took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reviver.editing.model import EditableModel
from reviver.evaluation.counterfact import compared_target, neighbor_answers
from reviver.evaluation.scores import answers, score_continuations
from reviver.facts.fact import Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a model said about one fact at one moment.

    Attributes:
        probability_new: of the new target after the prompt.
        probability_true: of the true target, where the fact names one that is not the new one.
        said_new: whether greedy decoding writes the new target.
        answer: the first words that the model writes after the prompt.
        paraphrases: for each paraphrase, whether the new target is said.
        neighbors: for each neighbour that has an answer, whether that answer is said.
    """

    probability_new: float
    probability_true: float | None
    said_new: bool
    answer: str
    paraphrases: tuple[bool, ...]
    neighbors: tuple[bool, ...]

    def to_record(self) -> dict[str, object]:
        """Return the form in `results.jsonl`."""
        return {
            "probability_new": round(self.probability_new, 6),
            "probability_true": None if self.probability_true is None else round(self.probability_true, 6),
            "answer": self.answer,
        }


def observe(model: EditableModel, facts: Sequence[Fact], *, answer_tokens: int = 8) -> list[Observation]:
    """Return what the model says about every fact, its paraphrases and its neighbours.

    Raises:
        FactsError: a prompt with what follows it is longer than the model's window.
        NumericsError: the model gives no probabilities.
    """
    pairs: list[tuple[str, str]] = []
    for fact in facts:
        pairs.append((fact.text, fact.target_new))
        true_target = compared_target(fact)
        if true_target is not None:
            pairs.append((fact.text, true_target))
        pairs += [(prompt, fact.target_new) for prompt in fact.paraphrase_prompts]
        pairs += [(prompt, answer) for prompt, answer in neighbor_answers(fact)]
    scores = iter(score_continuations(model, pairs))
    written = answers(model, [fact.text for fact in facts], tokens=answer_tokens)
    observations = []
    for fact, answer in zip(facts, written, strict=True):
        new = next(scores)
        true = next(scores) if compared_target(fact) is not None else None
        observations.append(
            Observation(
                probability_new=new.probability,
                probability_true=None if true is None else true.probability,
                said_new=new.exact,
                answer=answer,
                paraphrases=tuple(next(scores).exact for _ in fact.paraphrase_prompts),
                neighbors=tuple(next(scores).exact for _ in neighbor_answers(fact)),
            )
        )
    return observations


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Shares over all facts; a share of nothing is missing.

    Attributes:
        efficacy: facts whose new target is said.
        paraphrase: paraphrases after which it is said.
        neighbors_kept: of the neighbours that the base answers rightly, those still answered so.
        success: facts whose new target is more probable than the true one (CounterFact's ES), of those where the two differ.
        facts, paraphrases, neighbors: how many of each were counted.
        known: how many facts were said before already.
    """

    efficacy: float | None
    paraphrase: float | None
    neighbors_kept: float | None
    success: float | None
    facts: int
    paraphrases: int
    neighbors: int
    known: int


def summarize(
    before: Sequence[Observation], after: Sequence[Observation], base_said: Sequence[Sequence[bool]]
) -> Summary:
    """Return the shares of what was observed.

    Args:
        before, after: of each fact, in the same order.
        base_said: for each fact which of its neighbours the base answers rightly (`neighbors_said`).
    """
    paraphrases = [said for one in after for said in one.paraphrases]
    kept = [
        now
        for said, new in zip(base_said, after, strict=True)
        for was, now in zip(said, new.neighbors, strict=True)
        if was
    ]
    compared = [one.probability_new > one.probability_true for one in after if one.probability_true is not None]
    return Summary(
        efficacy=_share([one.said_new for one in after]),
        paraphrase=_share(paraphrases),
        neighbors_kept=_share(kept),
        success=_share(compared),
        facts=len(after),
        paraphrases=len(paraphrases),
        neighbors=len(kept),
        known=sum(one.said_new for one in before),
    )


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
