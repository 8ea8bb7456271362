"""AlphaEdit (Fang et al., ICLR 2025): updates only where ordinary text has next to no keys.

With P the projector on the eigenvectors of C with small eigenvalues, X = [P(K Kᵀ + K_p K_pᵀ) + L2·1]⁻¹ P K Rᵀ and ΔW
= Xᵀ. Pushed through, X = K̃ (K̃ᵀK̃ + L2·1)⁻¹ [R, 0]ᵀ with K̃ = P [K, K_p]: the common solve in the span of those
eigenvectors at the cost L2. Earlier keys are remembered as they are after their round.

Shape suffixes: see `base`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reviver.editing.editors.base import Editor, LayerProblem, Memory, ProtectedSpace, Solution, setting
from reviver.editing.editors.kept import Kept
from reviver.editing.editors.memory import KeyMemory
from reviver.editing.editors.moments import EIGEN_COPIES, ridged_cholesky, symmetric_
from reviver.editing.editors.need import Need, WeightShape, moment_need, with_keys
from reviver.editing.editors.solve import FactorSpace, FlatSpace, SafeSpace, Space, SpanSpace, solve
from reviver.errors import NumericsError

STRIPE = 1024
"""Rows of a Gram matrix that are on the device at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaEditSettings:
    """Settings of AlphaEdit."""

    l2: float = setting(10.0, "cost of the update's norm", least=1e-12)
    threshold: float | None = setting(
        None,
        "eigenvalues of the second moment below this absolute limit span the space of the update; wins over `share`",
        least=0.0,
    )
    share: float = setting(
        0.05,
        "the smallest eigenvalues that together hold at most this share of the trace span the space of the update",
        least=0.0,
        most=1.0,
    )


def alphaedit(problem: LayerProblem, settings: AlphaEditSettings) -> Solution:
    """Return AlphaEdit's update of one weight; component r belongs to fact r.

    Raises:
        NumericsError: no eigenvalue of the second moment is below the limit.
    """
    moment, protected = problem.moment(), problem.protected
    share = None if settings.threshold is not None else settings.share
    directions_IJ = moment.null_space(threshold=settings.threshold, share=share)
    if not directions_IJ.shape[1]:
        raise NumericsError(
            "the second moment of this layer has no eigenvalue below AlphaEdit's limit, so that there is no room to edit",
            hint="raise `share`, or `threshold`, under [editors.alphaedit] in `reviver.toml`",
        )
    memory = problem.memory if isinstance(problem.memory, KeyMemory) else KeyMemory.empty(moment.size)
    prepared = memory.prepared(
        (directions_IJ, settings.l2, protected),
        lambda gram_II: null_space(directions_IJ, settings.l2, gram_II, protected),
    )
    update = solve(prepared.space, problem.keys_IN, problem.residual_ON, earlier=prepared.whitened, protected=protected)
    return Solution(update, memory)


def null_space(directions_IJ: Kept, l2: float, gram_II: Tensor | None, protected: ProtectedSpace | None) -> Space:
    """Return the span of the directions at the cost L2 plus the Gram matrix of earlier keys, less the protected directions."""
    inner: Space
    if gram_II is None:
        inner = FlatSpace(l2, directions_IJ.device)
    else:
        inner = FactorSpace(Kept(_factor_within(directions_IJ.values(), gram_II, l2), directions_IJ.device))
    space = SpanSpace(directions_IJ, inner)
    return space if protected is None else SafeSpace.within(space, protected)


def _factor_within(directions_IJ: Tensor, gram_II: Tensor, l2: float) -> Tensor:
    """Return the lower Cholesky factor of L2 plus a Gram matrix in the coordinates of some directions, [J, J]."""
    # The Gram matrix lies in host memory and comes in stripes: beside the directions the device has room for one more matrix.
    weighed_IJ = torch.empty_like(directions_IJ)
    for start in range(0, gram_II.shape[0], STRIPE):
        weighed_IJ[start : start + STRIPE] = gram_II[start : start + STRIPE].to(directions_IJ) @ directions_IJ
    cost_JJ = symmetric_(directions_IJ.T @ weighed_IJ)
    del weighed_IJ
    cost_JJ.diagonal().add_(l2)
    return ridged_cholesky(cost_JJ, l2, 0.0)[0]


def start_memory(settings: AlphaEditSettings, outputs: int, inputs: int) -> Memory | None:
    """Return the empty memory of earlier keys."""
    return KeyMemory.empty(inputs)


def needs(settings: AlphaEditSettings, shape: WeightShape) -> Need:
    """Return the memory that it needs for a weight: the null space [I, J] with J up to I, and once an eigendecomposition.

    That is done in main memory where the device has no room for it. A CPU has the factor of λC ready, whoever solves.
    """
    square = 8 * shape.inputs**2
    need = with_keys(replace(moment_need(shape), solve=square + shape.round_bytes), shape)
    host = max(need.host, EIGEN_COPIES * square)
    return replace(need, kept_by_cpu=square, host=host, null_space=square)


EDITOR = Editor(
    name="alphaedit",
    title="AlphaEdit",
    reference_url="https://arxiv.org/abs/2410.02355",
    solve=alphaedit,
    settings_type=AlphaEditSettings,
    memory="keys",
    start_memory=start_memory,
    needs=needs,
    restraint="raise `l2` under [editors.alphaedit]",
)
