"""NSE (Jiang et al., 2024): neuron-level sequential editing.

Only the neurons S (input features, columns of W) that the round's facts drive hardest are edited: R K_Sᵀ (λC_SS +
(K_p K_pᵀ)_SS + K_S K_Sᵀ)⁻¹ on S and zero elsewhere. Targets are found on the original weights (weights rewinding),
and facts whose outputs are still far from their targets get one more pass.

Shape suffixes: see `base`; `S` selected neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reviver.editing.editors.base import Editor, LayerProblem, Memory, Solution, setting
from reviver.editing.editors.memory import KeyMemory
from reviver.editing.editors.moments import ridged_cholesky
from reviver.editing.editors.solve import FactorSpace, SafeSpace, SelectedSpace, Space, solve


@dataclass(frozen=True, slots=True, kw_only=True)
class NseSettings:
    """Settings of NSE."""

    share: float = setting(
        0.8,
        "the hardest driven neurons that together make up this share of all activation are edited",
        least=0.0,
        most=1.0,
    )
    alpha: float = setting(
        2.5, "a fact whose output is still farther than this from its target gets one more pass", least=0.0
    )
    upper: float = setting(50.0, "a fact farther than this from its target is given up", least=0.0)


def nse(problem: LayerProblem, settings: NseSettings) -> Solution:
    """Return NSE's update of one weight; component r belongs to fact r."""
    moment = problem.moment()
    memory = problem.memory if isinstance(problem.memory, KeyMemory) else KeyMemory.empty(moment.size)
    neurons_S = selected_neurons(problem.keys_IN, settings.share)
    cost_SS = moment.selected(neurons_S)
    if memory.count:
        cost_SS = cost_SS + memory.gram_at(neurons_S).to(cost_SS)
    factor_SS, _ = ridged_cholesky(cost_SS, moment.weight * moment.mean_eigenvalue, 0.0)
    space: Space = SelectedSpace(neurons_S, moment.size, FactorSpace(factor_SS))
    if problem.protected is not None:
        space = SafeSpace.within(space, problem.protected)
    return Solution(solve(space, problem.keys_IN, problem.residual_ON, protected=problem.protected), memory)


def selected_neurons(keys_IN: Tensor, share: float) -> Tensor:
    """Return the fewest neurons whose summed |key| reaches the given share of all, ascending; at least one."""
    drive_I = keys_IN.abs().sum(1, dtype=torch.float64)
    ordered_I, order_I = drive_I.sort(descending=True, stable=True)
    cumulative_I = ordered_I.cumsum(0)
    count = int((cumulative_I < share * cumulative_I[-1]).sum()) + 1
    return order_I[: min(count, len(order_I))].sort().values


def facts_to_repeat(distance_N: Tensor, settings: NseSettings) -> Tensor:
    """Return which facts get one more pass: those whose ‖z − h‖ is above α and below the upper limit, as a mask [N]."""
    return (distance_N > settings.alpha) & (distance_N < settings.upper)


def start_memory(settings: NseSettings, outputs: int, inputs: int) -> Memory | None:
    """Return the empty memory of earlier keys."""
    return KeyMemory.empty(inputs)


EDITOR = Editor(
    name="nse",
    title="NSE",
    reference_url="https://arxiv.org/abs/2410.04045",
    solve=nse,
    settings_type=NseSettings,
    memory="keys",
    start_memory=start_memory,
    targets_on="base",
    repeat=facts_to_repeat,
)
