"""One round: targets for all its facts at once, then layer by layer solve, filter, put in place, and measure what is still missing.

The filter stands between the editor's solve and the write, so that the next layer's residual is measured after the filtered update
is in place (REVIVE, arXiv 2601.11042). Weights are put in place as they will be stored, rounded to the stored dtype.

Legend: N facts, O output features, I input features; D, E the axes of the tensor as it lies on disk, R components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reviver.editing.accumulation import Accumulation
from reviver.editing.editors.base import DenseUpdate, Editor, LayerProblem, Memory, ProtectedSpace, Update
from reviver.editing.editors.moments import SecondMoment
from reviver.editing.keys import SubjectStates, through_post_norm
from reviver.editing.model import TORCH_DTYPES, EditableModel
from reviver.editing.targets import TargetSettings, find_targets
from reviver.errors import NumericsError
from reviver.facts.fact import Fact
from reviver.progress import NullProgress, Progress
from reviver.spectral.basis import SpectralBasis
from reviver.spectral.factors import balance
from reviver.spectral.filter import filter_dense, filter_factors
from reviver.text import printable


@dataclass(slots=True, kw_only=True)
class EditedLayer:
    """One edited tensor while rounds go over it.

    Attributes:
        layer: number of the block.
        name: name of the tensor on disk.
        dtype: its stored dtype, as safetensors call it.
        transposed: whether it is stored `[I, O]`.
        base_DE: the pretrained values, float32.
        live_DE: the exact sum of base and all updates so far, float32; the model holds it rounded to the stored dtype.
        basis: spectral basis of the base tensor; None without a filter.
        rank: protected rank k; None without a filter.
        moment: λC of the keys; None for editors that need none.
        memory: what the editor keeps of earlier rounds.
        total: the filtered updates of this version.
        unfiltered: what the editor asked for, before the filter.
    """

    layer: int
    name: str
    dtype: str
    transposed: bool
    base_DE: Tensor
    live_DE: Tensor
    basis: SpectralBasis | None = None
    rank: int | None = None
    moment: SecondMoment | None = None
    memory: Memory | None = None
    total: Accumulation = field(init=False)
    unfiltered: Accumulation = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.base_DE.shape[0], self.base_DE.shape[1])
        self.total = Accumulation(shape)
        self.unfiltered = Accumulation(shape)

    def oriented(self, weight_DE: Tensor) -> Tensor:
        """Return a weight on disk as `[O, I]`."""
        return weight_DE.T if self.transposed else weight_DE

    def stored(self) -> Tensor:
        """Return the live values as they would be stored, `[D, E]`."""
        return self.live_DE.to(TORCH_DTYPES[self.dtype])

    def add(self, update: Update) -> None:
        """Filter an update, add it to the sums and to the live values."""
        if isinstance(update, DenseUpdate):
            values_DE = update.on_disk(transposed=self.transposed)
            self.unfiltered.add_dense(values_DE)
            if self.basis is not None and self.rank is not None:
                values_DE = filter_dense(values_DE, self.basis, self.rank)
            self.total.add_dense(values_DE)
            self.live_DE += values_DE.to(self.live_DE)
            return
        left_DR, right_RE = update.on_disk(transposed=self.transposed)
        self.unfiltered.add_factors(*balance(left_DR, right_RE))
        if self.basis is not None and self.rank is not None:
            left_DR, right_RE = filter_factors(left_DR, right_RE, self.basis, self.rank)
        left_DR, right_RE = balance(left_DR, right_RE)
        left_DR, right_RE = left_DR.float(), right_RE.float()
        self.total.add_factors(left_DR, right_RE)
        self.live_DE += left_DR.to(self.live_DE) @ right_RE.to(self.live_DE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How rounds are solved.

    Attributes:
        editor: the editor.
        editor_settings: its settings.
        filter: `none`, `revive` or `constrained`.
        targets: how targets are sought.
        maximum_relative_norm: a tensor whose updates of this version outgrow this multiple of the base's norm is refused.
    """

    editor: Editor
    editor_settings: Any
    filter: str
    targets: TargetSettings
    maximum_relative_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What a round did, for the manifest.

    Attributes:
        facts: the ids of its facts, in order.
        mean_loss: mean of the targets' losses at the end.
        mean_steps: mean number of steps that a target took.
        norms: Frobenius norm of this version's sum after the round, by tensor.
    """

    facts: tuple[str, ...]
    mean_loss: float
    mean_steps: float
    norms: dict[str, float]


def run_round(
    model: EditableModel,
    layers: Sequence[EditedLayer],
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    settings: RoundSettings,
    *,
    progress: Progress | None = None,
) -> RoundRecord:
    """Solve for all facts of one round and leave the edited weights in the model.

    Args:
        model: holds the weights of the round before.
        layers: the edited tensors, ascending by block; changed in place.
        facts: the facts of the round.
        prefixes: texts before the prompts; the plain prompt is a context besides.
        settings: editor, filter, targets.
        progress: told about targets.

    Raises:
        NumericsError: something is not finite, or a norm is beyond its limit.
    """
    progress = progress or NullProgress()
    targets = find_targets(model, facts, prefixes, settings.targets, progress=progress)
    target_ON = targets.target_NO.T
    states = SubjectStates(model, facts, prefixes, token_budget=settings.targets.token_budget)
    for index, edited in enumerate(layers):
        key_IN, state_ON = states.measure(edited.layer)
        # What is missing is shared by the layers that are still to come.
        residual_ON = (target_ON - state_ON) / (len(layers) - index)
        residual_ON = through_post_norm(model, edited.layer, residual_ON, key_IN)
        protected = None
        if settings.filter == "constrained" and edited.basis is not None and edited.rank is not None:
            protected = ProtectedSpace.of(edited.basis, edited.rank, transposed=edited.transposed)
        problem = LayerProblem(
            keys_IN=key_IN,
            residual_ON=residual_ON,
            second_moment=edited.moment,
            memory=edited.memory,
            base_weight_OI=edited.oriented(edited.base_DE),
            weight_OI=edited.oriented(edited.live_DE),
            protected=protected,
        )
        solution = settings.editor.solve(problem, settings.editor_settings)
        if solution.memory is not None:
            edited.memory = solution.memory
        edited.add(solution.update)
        _check(edited, settings.maximum_relative_norm)
        model.put_weight(edited.layer, edited.stored())
    if settings.editor.memory == "keys":
        _remember(model, layers, facts, prefixes, settings)
    return RoundRecord(
        facts=tuple(fact.id for fact in facts),
        mean_loss=float(targets.loss_N.mean()),
        mean_steps=float(targets.steps_N.float().mean()),
        norms={edited.name: edited.total.norm() for edited in layers},
    )


def _remember(
    model: EditableModel,
    layers: Sequence[EditedLayer],
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    settings: RoundSettings,
) -> None:
    """Read the round's keys again on the edited weights and add them to each layer's memory (AlphaEdit, section 3.4)."""
    if all(edited.memory is None for edited in layers):
        return
    states = SubjectStates(model, facts, prefixes, token_budget=settings.targets.token_budget)
    for edited in layers:
        key_IN, _ = states.measure(edited.layer)
        edited.memory = settings.editor.remember(edited.memory, key_IN)


def _check(edited: EditedLayer, maximum_relative_norm: float) -> None:
    """Raise where a tensor has become unfit to be written."""
    name = printable(edited.name, 120)
    if not bool(torch.isfinite(edited.live_DE).all()) or not bool(torch.isfinite(edited.stored()).all()):
        raise NumericsError(
            f"the update of `{name}` is NaN or infinite; nothing was written",
            hint="compute in float32 with `--dtype float32`, or use smaller rounds with `--round-size`",
            tensor=edited.name,
        )
    growth = float(torch.linalg.vector_norm(edited.live_DE - edited.base_DE) / torch.linalg.vector_norm(edited.base_DE))
    if growth > maximum_relative_norm:
        raise NumericsError(
            f"the update of `{name}` is {growth:.1f} times the base's norm, beyond the limit of {maximum_relative_norm:g}; "
            "nothing was written",
            hint="edit fewer facts, raise `weight` under [memit] in `reviver.toml`, or raise `maximum_relative_norm`",
            tensor=edited.name,
            growth=growth,
        )
