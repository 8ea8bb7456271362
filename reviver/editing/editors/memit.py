"""MEMIT (Meng et al., ICLR 2023): one regularised least-squares update a layer for all facts of a round.

ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, and with the memory of earlier rounds R Kᵀ (λC + K_p K_pᵀ + K Kᵀ)⁻¹, so that earlier facts
are held on to.

Shape suffixes: see `base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reviver.editing.editors.base import Editor, FactoredUpdate, LayerProblem, Memory, ProtectedSpace, Solution, setting
from reviver.editing.editors.kept import Kept
from reviver.editing.editors.memory import KeyMemory
from reviver.editing.editors.moments import SecondMoment, ridged_cholesky
from reviver.editing.editors.need import Need, WeightShape, moment_need, with_keys
from reviver.editing.editors.solve import FactorSpace, MomentSpace, SafeSpace, Space, solve


@dataclass(frozen=True, slots=True, kw_only=True)
class MemitSettings:
    """Settings of MEMIT."""

    memory: str = setting(
        "none",
        "whether a round's solve also holds on to the keys of earlier rounds (`keys`) or not (`none`)",
        choices=("none", "keys"),
    )


def memit(problem: LayerProblem, settings: MemitSettings) -> Solution:
    """Return MEMIT's update of one weight; component r belongs to fact r."""
    memory = problem.memory if settings.memory == "keys" else None
    return Solution(least_squares(problem, memory), problem.memory)


def least_squares(problem: LayerProblem, memory: Memory | None) -> FactoredUpdate:
    """Return the update of least cost, A = λC plus the Gram matrix of the remembered keys, under the problem's constraint."""
    moment, protected = problem.moment(), problem.protected
    if isinstance(memory, KeyMemory) and memory.count:
        prepared = memory.prepared((moment, protected), lambda gram_II: cost_space(moment, gram_II, protected))
        return solve(
            prepared.space, problem.keys_IN, problem.residual_ON, earlier=prepared.whitened, protected=protected
        )
    return solve(cost_space(moment, None, protected), problem.keys_IN, problem.residual_ON, protected=protected)


def cost_space(moment: SecondMoment, gram_II: Tensor | None, protected: ProtectedSpace | None) -> Space:
    """Return the space of all input features at the cost λC + Gram, less the protected directions."""
    space: Space
    if gram_II is None:
        space = MomentSpace(moment)
    else:
        matrix_II = moment.matrix().add_(gram_II.to(moment.device, torch.float64))
        factor_II, _ = ridged_cholesky(matrix_II, moment.weight * moment.mean_eigenvalue, 0.0)
        space = FactorSpace(Kept(factor_II, moment.device))
    return space if protected is None else SafeSpace.within(space, protected)


def start_memory(settings: MemitSettings, outputs: int, inputs: int) -> Memory | None:
    """Return the empty memory of earlier keys, where the settings want one."""
    return KeyMemory.empty(inputs) if settings.memory == "keys" else None


def needs(settings: Any, shape: WeightShape) -> Need:
    """Return the memory that `least_squares` needs for a weight."""
    return with_keys(moment_need(shape), shape)


EDITOR = Editor(
    name="memit",
    title="MEMIT",
    reference_url="https://arxiv.org/abs/2210.07229",
    solve=memit,
    settings_type=MemitSettings,
    memory="keys",
    start_memory=start_memory,
    needs=needs,
)
