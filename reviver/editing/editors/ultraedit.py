"""UltraEdit (Gu et al., 2025): an update from one forward and one backward pass, without subjects, targets or second moments.

At all answer tokens: raw key k and gradient g of the loss with respect to the weight's output. Both are normalised by
moments that run on over all rounds, and the normalised k̂, ĝ enter only v = −η ‖k̂‖² ĝ; with raw keys, ΔWᵀ = Kᵀ (K Kᵀ
+ 1)⁻¹ V, tokens as rows. Pushed through, that is the common solve at the cost of the identity.

Shape suffixes: see `base`; here `N` are the answer tokens of the round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reviver.editing.editors.base import Editor, LayerProblem, Memory, Solution, setting
from reviver.editing.editors.need import Need, WeightShape
from reviver.editing.editors.solve import FlatSpace, SafeSpace, Space, solve
from reviver.errors import ManifestError
from reviver.spectral.factors import finite

# Added to standard deviations, so that a feature that never varies is not divided by zero.
LEAST_DEVIATION = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class UltraEditSettings:
    """Settings of UltraEdit."""

    rate: float = setting(1e-6, "how far each token's output is moved, η", least=0.0)
    l2: float = setting(1.0, "cost of the update's norm", least=1e-12)


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Mean and variance of every feature over all tokens of all rounds.

    Attributes:
        count: tokens seen.
        mean_F: mean of each feature, float64.
        squares_F: sum of squared deviations from the mean, float64.
    """

    count: int
    mean_F: Tensor
    squares_F: Tensor

    def updated(self, values_FN: Tensor) -> RunningMoments:
        """Return the moments with further tokens, merged without loss of digits (Chan, Golub and LeVeque 1983)."""
        values_FN = values_FN.to("cpu", torch.float64)
        added = values_FN.shape[1]
        if not added:
            return self
        mean_F = values_FN.mean(1)
        squares_F = (values_FN - mean_F[:, None]).square().sum(1)
        total, shift_F = self.count + added, mean_F - self.mean_F
        return RunningMoments(
            total,
            self.mean_F + shift_F * (added / total),
            self.squares_F + squares_F + shift_F.square() * (self.count * added / total),
        )

    def normalised(self, values_FN: Tensor) -> Tensor:
        """Return values as deviations from the mean in units of the standard deviation."""
        deviation_F = (self.squares_F / max(self.count, 1)).sqrt() + LEAST_DEVIATION
        return (values_FN - self.mean_F.to(values_FN)[:, None]) / deviation_F.to(values_FN)[:, None]


@dataclass(frozen=True, slots=True)
class MomentsMemory:
    """The running moments of keys [I] and gradients [O]."""

    keys: RunningMoments
    gradients: RunningMoments

    @staticmethod
    def empty(outputs: int, inputs: int) -> MomentsMemory:
        """Return the memory before the first round."""
        zeros_I, zeros_O = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        return MomentsMemory(RunningMoments(0, zeros_I, zeros_I), RunningMoments(0, zeros_O, zeros_O))

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> MomentsMemory:
        """Return a memory that was saved.

        Raises:
            ManifestError: the tensors are not those of such a memory.
        """
        try:
            count = int(tensors["count"])
            keys = RunningMoments(count, tensors["key_mean"], tensors["key_squares"])
            gradients = RunningMoments(count, tensors["gradient_mean"], tensors["gradient_squares"])
            sound = (
                count >= 0
                and all(
                    each.mean_F.ndim == 1 and each.mean_F.shape == each.squares_F.shape for each in (keys, gradients)
                )
                and finite(*tensors.values())
            )
        except (KeyError, RuntimeError) as error:
            raise _damaged() from error
        if not sound:
            raise _damaged()
        return MomentsMemory(keys, gradients)

    def tensors(self) -> dict[str, Tensor]:
        """Return what has to be saved."""
        return {
            "count": torch.tensor([self.keys.count]),
            "key_mean": self.keys.mean_F,
            "key_squares": self.keys.squares_F,
            "gradient_mean": self.gradients.mean_F,
            "gradient_squares": self.gradients.squares_F,
        }


def ultraedit(problem: LayerProblem, settings: UltraEditSettings) -> Solution:
    """Return UltraEdit's update of one weight; component r belongs to token r."""
    keys_IN, gradient_ON = problem.keys_IN.to(torch.float64), problem.residual_ON.to(torch.float64)
    memory = problem.memory
    if not isinstance(memory, MomentsMemory):
        memory = MomentsMemory.empty(gradient_ON.shape[0], keys_IN.shape[0])
    memory = MomentsMemory(memory.keys.updated(keys_IN), memory.gradients.updated(gradient_ON))
    strength_N = memory.keys.normalised(keys_IN).square().sum(0)
    wanted_ON = -settings.rate * strength_N * memory.gradients.normalised(gradient_ON)
    space: Space = FlatSpace(settings.l2, keys_IN.device)
    if problem.protected is not None:
        space = SafeSpace.within(space, problem.protected)
    return Solution(solve(space, keys_IN, wanted_ON, protected=problem.protected), memory)


def _damaged() -> ManifestError:
    return ManifestError(
        "the editor's memory of earlier rounds is damaged", hint="go back with `reviver undo`, and apply again"
    )


def start_memory(settings: UltraEditSettings, outputs: int, inputs: int) -> Memory | None:
    """Return running moments of nothing."""
    return MomentsMemory.empty(outputs, inputs)


def needs(settings: UltraEditSettings, shape: WeightShape) -> Need:
    """Return the memory that it needs for a weight: thin matrices, and two moments of every feature."""
    moments = 16 * (shape.outputs + shape.inputs)
    return Need(solve=shape.round_bytes, kept=moments, snapshot=moments)


EDITOR = Editor(
    name="ultraedit",
    title="UltraEdit",
    reference_url="https://arxiv.org/abs/2505.14679",
    solve=ultraedit,
    settings_type=UltraEditSettings,
    memory="moments",
    start_memory=start_memory,
    load_memory=MomentsMemory.from_tensors,
    needs=needs,
    restraint="lower `rate` under [editors.ultraedit]",
    needs_second_moment=False,
    signal="gradients",
)
