"""Efficacy by the age of the edit: whether what was written first is still there at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reviver.evaluation.counterfact import FactMeasure

BLOCKS = 10
"""Into how many blocks of like size the facts of a chain are divided, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeGroup:
    """Facts of like age.

    Attributes:
        name: the version that set them, or the block's number from 1, oldest first.
        first, last: places of the first and last of them, counted from 1 over all facts in the order they were set.
        facts: how many they are.
        efficacy: share whose new target greedy decoding would write.
        es: share whose new target is more probable than the true one; None where no fact names one.
    """

    name: str
    first: int
    last: int
    facts: int
    efficacy: float
    es: float | None


def by_version(versions: Sequence[str], measures: Sequence[FactMeasure]) -> tuple[AgeGroup, ...]:
    """Return one group a version.

    Args:
        versions: for each fact the version that set it last, in the order of the chain.
        measures: of the same facts.
    """
    groups = []
    start = 0
    for index in range(1, len(versions) + 1):
        if index == len(versions) or versions[index] != versions[start]:
            groups.append(_group(versions[start], start, measures[start:index]))
            start = index
    return tuple(groups)


def in_blocks(measures: Sequence[FactMeasure], count: int = BLOCKS) -> tuple[AgeGroup, ...]:
    """Return at most `count` groups of like size, oldest first; the sizes differ by one at most."""
    count = min(count, len(measures))
    edges = [round(number * len(measures) / count) for number in range(count + 1)] if count else []
    return tuple(
        _group(str(number), start, measures[start:stop]) for number, (start, stop) in enumerate(pairwise(edges), 1)
    )


def _group(name: str, start: int, measures: Sequence[FactMeasure]) -> AgeGroup:
    compared = [one.rewrite.wins for one in measures if one.rewrite.other is not None]
    return AgeGroup(
        name=name,
        first=start + 1,
        last=start + len(measures),
        facts=len(measures),
        efficacy=sum(one.rewrite.wanted.exact for one in measures) / len(measures),
        es=sum(compared) / len(compared) if compared else None,
    )
