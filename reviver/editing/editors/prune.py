"""PRUNE (Ma et al., ICLR 2025): the large singular values of the sum of all edits are held back.

Of the total Δ_t = W_t − W_0 of all unpruned edits, singular values at or above σ_max(W_0) go to ln σ − ln σ_max(W_0)
+ σ_max(W_0), and never above what they were (where σ_max(W_0) < 1 the formula alone would raise some). The weight
becomes W_0 + Δ'_t, so a round's patch is Δ'_t − Δ'_{t−1}. Only a few directions of the total are ever held back: Δ'_t
= Δ_t + (a correction of low rank), and so the patch is MEMIT's factors and the difference of two corrections.

Shape suffixes: see `base`; `C` components of a correction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reviver.editing.editors.base import DenseUpdate, Editor, FactoredUpdate, LayerProblem, Solution, Update, setting
from reviver.editing.editors.memit import least_squares
from reviver.editing.editors.need import Need, WeightShape, moment_need
from reviver.errors import ManifestError
from reviver.spectral.basis import compute_basis
from reviver.spectral.factors import compact, factored_norm, finite

FOLDED = 4
"""Factors with more than this part of the components that a weight can have become a whole matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """Settings of PRUNE."""

    ceiling: float = setting(
        1.0, "singular values from this multiple of the base's largest on are held back", least=1e-6
    )


@dataclass(frozen=True, slots=True)
class TotalMemory:
    """The sum of all unpruned updates of one weight, and the correction that the rounds before applied. All float32.

    Attributes:
        left_OR: left factor of what was added since `values_OI` was last formed.
        right_RI: right factor.
        values_OI: the sum before, once the factors outgrew it; else None.
        correction_OC: left factor of the last correction.
        correction_CI: right factor.
        largest: σ_max(W_0).
    """

    left_OR: Tensor
    right_RI: Tensor
    values_OI: Tensor | None
    correction_OC: Tensor
    correction_CI: Tensor
    largest: float

    @staticmethod
    def start(base_weight_OI: Tensor) -> TotalMemory:
        """Return the memory before the first round of a weight."""
        outputs, inputs = base_weight_OI.shape
        largest = float(compute_basis(base_weight_OI, 1, spectrum=False).singular_values[0])
        none_left, none_right = torch.empty(outputs, 0), torch.empty(0, inputs)
        return TotalMemory(none_left, none_right, None, none_left, none_right, largest)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> TotalMemory:
        """Return a memory that was saved.

        Raises:
            ManifestError: the tensors are not those of such a memory.
        """
        try:
            memory = TotalMemory(
                tensors["left"],
                tensors["right"],
                tensors.get("values"),
                tensors["correction_left"],
                tensors["correction_right"],
                float(tensors["largest"]),
            )
            shape = (memory.left_OR.shape[0], memory.right_RI.shape[1])
            sound = (
                memory.left_OR.shape[1] == memory.right_RI.shape[0]
                and memory.correction_OC.shape[1] == memory.correction_CI.shape[0]
                and (memory.correction_OC.shape[0], memory.correction_CI.shape[1]) == shape
                and (memory.values_OI is None or tuple(memory.values_OI.shape) == shape)
                and finite(*tensors.values())
            )
        except (KeyError, IndexError, RuntimeError) as error:
            raise _damaged() from error
        if not sound:
            raise _damaged()
        return memory

    def tensors(self) -> dict[str, Tensor]:
        """Return what has to be saved."""
        saved = {
            "left": self.left_OR,
            "right": self.right_RI,
            "correction_left": self.correction_OC,
            "correction_right": self.correction_CI,
            "largest": torch.tensor([self.largest], dtype=torch.float64),
        }
        return saved if self.values_OI is None else {**saved, "values": self.values_OI}

    def plus(self, update: Update) -> TotalMemory:
        """Return the memory with one more unpruned update; its correction is still the former one."""
        if isinstance(update, DenseUpdate):
            dense_OI = update.values_OI.to("cpu", torch.float32)
            return replace(self, values_OI=dense_OI if self.values_OI is None else self.values_OI + dense_OI)
        left_OR = torch.cat([self.left_OR, update.left_OR.to("cpu", torch.float32)], dim=1)
        right_RI = torch.cat([self.right_RI, update.right_RI.to("cpu", torch.float32)], dim=0)
        values_OI = self.values_OI
        if left_OR.shape[1] * FOLDED > min(left_OR.shape[0], right_RI.shape[1]):
            added_OI = (left_OR.double() @ right_RI.double()).float()
            values_OI = added_OI if values_OI is None else values_OI + added_OI
            left_OR, right_RI = left_OR[:, :0], right_RI[:0]
        return TotalMemory(left_OR, right_RI, values_OI, self.correction_OC, self.correction_CI, self.largest)

    def corrected(self, ceiling: float) -> TotalMemory:
        """Return the memory with the correction that holds back its singular values from `ceiling` on."""
        outer_OC, values_C, inner_CI = self._large(ceiling)
        change_C = held_back(values_C, ceiling) - values_C
        roots_C = change_C.abs().sqrt()
        left_OC, right_CI = (outer_OC * -roots_C).float(), (roots_C[:, None] * inner_CI).float()
        return TotalMemory(self.left_OR, self.right_RI, self.values_OI, left_OC, right_CI, self.largest)

    def _large(self, ceiling: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the singular triplets of the total from `ceiling` on: [O, C], [C], [C, I]."""
        if self.values_OI is None:
            left_OR, right_RI = self.left_OR.double(), self.right_RI.double()
            # The Frobenius norm bounds every singular value, and is much cheaper.
            if factored_norm(left_OR, right_RI) < ceiling:
                return left_OR[:, :0], left_OR.new_empty(0), right_RI[:0]
            left_OR, right_RI = compact(left_OR, right_RI)
            roots_R = torch.linalg.vector_norm(left_OR, dim=0)
            count = int((roots_R.square() >= ceiling).sum())
            return (
                left_OR[:, :count] / roots_R[:count],
                roots_R[:count].square(),
                right_RI[:count] / roots_R[:count, None],
            )
        total_OI = self.values_OI.double() + self.left_OR.double() @ self.right_RI.double()
        most = min(total_OI.shape)
        width = min(16, most)
        while True:
            basis = compute_basis(total_OI, width, spectrum=False)
            values = basis.singular_values[:width]
            count = int((values >= ceiling).sum())
            if count < width or width == most:
                return basis.left_DK[:, :count], values[:count], basis.right_EK[:, :count].T
            width = min(2 * width, most)


def prune(problem: LayerProblem, settings: PruneSettings) -> Solution:
    """Return PRUNE's patch of one weight: MEMIT's components first, then those of the two corrections."""
    memory = problem.memory
    if not isinstance(memory, TotalMemory):
        if problem.base_weight_OI is None:
            raise ValueError("PRUNE needs the base weight")
        memory = TotalMemory.start(problem.base_weight_OI)
    raw = least_squares(problem, None)
    after = memory.plus(raw).corrected(settings.ceiling * memory.largest)
    update = FactoredUpdate(
        torch.cat([raw.left_OR, after.correction_OC.to(raw.left_OR), -memory.correction_OC.to(raw.left_OR)], dim=1),
        torch.cat([raw.right_RI, after.correction_CI.to(raw.right_RI), memory.correction_CI.to(raw.right_RI)], dim=0),
    )
    return Solution(update, after)


def held_back(values_C: Tensor, ceiling: float) -> Tensor:
    """Return singular values as PRUNE leaves them: logarithmic from `ceiling` on, never above what they were."""
    logarithmic_C = torch.log(values_C / ceiling) + ceiling
    return torch.where(values_C >= ceiling, torch.minimum(logarithmic_C, values_C), values_C)


def _damaged() -> ManifestError:
    return ManifestError(
        "the editor's memory of earlier rounds is damaged", hint="go back with `reviver undo`, and apply again"
    )


def needs(settings: PruneSettings, shape: WeightShape) -> Need:
    """Return the memory that it needs for a weight: MEMIT's, and the total of all updates in main memory."""
    outputs, inputs = shape.outputs, shape.inputs
    widest = min(shape.total, min(outputs, inputs) // FOLDED)
    total = 4 * widest * (outputs + inputs) + (4 * outputs * inputs if shape.total > widest else 0)
    need = moment_need(shape)
    # Its large singular values are found in float64: the matrix, what it is summed of, and the search for them.
    return replace(need, kept=need.kept + total, host=32 * outputs * inputs, snapshot=total + 8)


EDITOR = Editor(
    name="prune",
    title="PRUNE",
    reference_url="https://arxiv.org/abs/2405.16821",
    solve=prune,
    settings_type=PruneSettings,
    memory="total",
    start_from=TotalMemory.start,
    load_memory=TotalMemory.from_tensors,
    facts_apart=False,
    needs_weights=True,
    needs=needs,
)
