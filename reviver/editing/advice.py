"""From what was measured of a model's blocks to the blocks and the λ to edit it with, and to why the others are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reviver.editing.fitness import BlockFitness, Response

OWN = 0.95
"""λ is the largest at which so much of what is asked for a key arrives there: a larger one disturbs ordinary text less."""

SEQUENCE_OWN = 0.8
"""So much is enough over thousands of edits: less of each arrives, but norms grow less. On the small model of the README, 1,900
edits at λ = 1000 (81 % arrive) kept 91 % of the language, at λ = 100 (98 %) 65 %, both with an ES of 92 to 93 %.
"""

LEAST_WRITE, MOST_WRITE = 0.1, 0.8
"""What an MLP should write, relative to the residual stream: less cannot carry a fact, more is not one voice among others."""

MOST_COSINE, MOST_CLOSEST = 0.2, 0.5
"""How alike whitened keys of different subjects may be, on average and at their closest."""

LEAST_REACH = 0.9
"""The share of probed facts that the state behind the last edited block should be able to say."""

MOST_UPDATE = 1.5
"""The largest update that a block should need to write the probed facts alone, relative to its weight. The small model of the
README needs 0.95, 1.04 and 0.74 at blocks 2 to 4, and 0.74, 0.59 and 0.23 at 4 to 6; MEMIT with memory wrote there ES 98 % of 350
facts and here 90 % of 250, for a like growth of the norm, so that a little more than the weight itself speaks against no block.
"""

MOST_BLOCKS = 5
"""How many blocks an edit is spread over at most (MEMIT's presets)."""

DEPTH_SHARE = 0.35
"""The share of all blocks that an edit is spread over in a small model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do with a model.

    Attributes:
        fit: whether some blocks can be edited; None where nothing speaks against some, but no facts were tried.
        layers: the blocks to edit.
        weight: the λ to edit them with.
        sequence_weight: the λ for thousands of edits, one batch after the other.
        responses: what every λ does to keys, on average over these blocks.
        reasons: what speaks against each of the other blocks, by block.
    """

    fit: bool | None
    layers: tuple[int, ...]
    weight: float | None
    sequence_weight: float | None
    responses: tuple[Response, ...]
    reasons: dict[int, tuple[str, ...]]


def advise(blocks: Sequence[BlockFitness], depth: int) -> Advice:
    """Return the earliest of the longest run of usable blocks, as many as an edit is spread over, and their λ.

    Args:
        blocks: ascending.
        depth: how many blocks the model has in all.
    """
    reasons = {block.layer: tuple(faults(block)) for block in blocks}
    runs: list[list[BlockFitness]] = [[]]
    for block in blocks:
        if reasons[block.layer]:
            runs.append([])
        else:
            runs[-1].append(block)
    count = min(MOST_BLOCKS, max(1, math.ceil(depth * DEPTH_SHARE)))
    # Of equally good runs the first: the presets that are published edit early blocks.
    chosen = max(runs, key=lambda run: min(len(run), count))[:count]
    mean = _mean_responses(chosen)
    return Advice(
        fit=False if not chosen else None if any(block.reachable is None for block in chosen) else True,
        layers=tuple(block.layer for block in chosen),
        weight=_best_weight(mean, OWN),
        sequence_weight=_best_weight(mean, SEQUENCE_OWN),
        responses=mean,
        reasons={layer: why for layer, why in reasons.items() if why},
    )


def faults(block: BlockFitness) -> list[str]:
    """Return what speaks against editing a block, in plain words; what was not measured speaks against none."""
    found = []
    if block.write_share < LEAST_WRITE:
        found.append(f"its MLP writes only {block.write_share:.1%} of the residual stream")
    if block.write_share > MOST_WRITE:
        found.append(f"its MLP writes {block.write_share:.0%} of the residual stream")
    if block.key_cosine is not None and block.key_cosine > MOST_COSINE:
        found.append(f"keys of different subjects are alike (mean cosine {block.key_cosine:.2f})")
    elif block.closest_keys is not None and block.closest_keys > MOST_CLOSEST:
        found.append(f"a subject's key is close to another's (cosine {block.closest_keys:.2f} at its closest)")
    if block.reachable is not None and block.reachable < LEAST_REACH:
        found.append(f"only {block.reachable:.0%} of the facts are in reach")
    norms = dict(zip((one.weight for one in block.responses), block.update_norms or (), strict=False))
    weight = _best_weight(block.responses, OWN) or 0.0
    norm = norms.get(weight, 0.0)
    if norm > MOST_UPDATE:
        found.append(f"an update would be {norm:.1f} times its weight at λ = {weight:g}")
    return found


def _best_weight(responses: Sequence[Response], own: float) -> float | None:
    """Return the largest λ that lets enough arrive, or the smallest of all; None where keys were not measured."""
    enough = [one.weight for one in responses if one.own >= own]
    return max(enough, default=min((one.weight for one in responses), default=None))


def _mean_responses(blocks: Sequence[BlockFitness]) -> tuple[Response, ...]:
    measured = [block.responses for block in blocks if block.responses]
    return tuple(
        Response(
            weight=same[0].weight,
            own=sum(one.own for one in same) / len(same),
            leak=sum(one.leak for one in same) / len(same),
        )
        for same in zip(*measured, strict=True)
    )
