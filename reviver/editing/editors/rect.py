"""RECT (Gu et al., EMNLP 2024): MEMIT's update, of which only the entries that change their weight most are kept.

An edit that changes every weight a little harms general abilities more than one that changes few: of MEMIT's ΔW the
share `keep` of entries with the largest |ΔW / W| stays, and all others become zero. Elementwise, so the update is
dense, and a filter after it makes it dense again.

Shape suffixes: see `base`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reviver.editing.editors.base import DenseUpdate, Editor, LayerProblem, Memory, Solution, setting
from reviver.editing.editors.memit import least_squares
from reviver.editing.editors.memit import needs as memit_needs
from reviver.editing.editors.memory import KeyMemory
from reviver.editing.editors.need import Need, WeightShape


@dataclass(frozen=True, slots=True, kw_only=True)
class RectSettings:
    """Settings of RECT."""

    keep: float = setting(0.4, "share of the entries that are kept, by falling relative change", least=0.0, most=1.0)
    memory: str = setting(
        "none",
        "whether a round's solve also holds on to the keys of earlier rounds (`keys`) or not (`none`)",
        choices=("none", "keys"),
    )


def rect(problem: LayerProblem, settings: RectSettings) -> Solution:
    """Return RECT's update of one weight."""
    if problem.weight_OI is None:
        raise ValueError("RECT needs the weight")
    update = least_squares(problem, problem.memory if settings.memory == "keys" else None)
    return Solution(DenseUpdate(most_changed(update.dense(), problem.weight_OI, settings.keep)), problem.memory)


def most_changed(delta_OI: Tensor, weight_OI: Tensor, keep: float) -> Tensor:
    """Return an update with only the given share of its entries, those of largest |ΔW / W|.

    A change of a weight that is zero counts as infinitely large. Entries that tie with the last one kept are kept too.
    """
    count = round(keep * delta_OI.numel())
    if count == 0:
        return torch.zeros_like(delta_OI)
    # In place where that can be: every matrix of this size takes 0.4 GiB on an 8B model.
    ratio_OI = delta_OI.abs().div_(weight_OI.to(delta_OI, copy=True).abs_())
    ratio_OI.masked_fill_(delta_OI == 0, 0.0)
    limit = ratio_OI.flatten().kthvalue(ratio_OI.numel() - count + 1).values
    return torch.where(ratio_OI >= limit, delta_OI, 0.0)


def start_memory(settings: RectSettings, outputs: int, inputs: int) -> Memory | None:
    """Return the empty memory of earlier keys, where the settings want one."""
    return KeyMemory.empty(inputs) if settings.memory == "keys" else None


def needs(settings: RectSettings, shape: WeightShape) -> Need:
    """Return the memory that it needs for a weight: MEMIT's, or after that four whole matrices."""
    need = memit_needs(settings, shape)
    return replace(need, solve=max(need.solve, 32 * shape.outputs * shape.inputs + shape.round_bytes))


EDITOR = Editor(
    name="rect",
    title="RECT",
    reference_url="https://arxiv.org/abs/2401.04700",
    solve=rect,
    settings_type=RectSettings,
    memory="keys",
    start_memory=start_memory,
    needs=needs,
    factored=False,
    facts_apart=False,
    needs_weights=True,
)
