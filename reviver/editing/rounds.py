"""One round: targets for all its facts at once, then layer by layer solve, filter, put in place, and measure what is still missing.

The filter stands between the editor's solve and the write, so that the next layer's residual is measured after the filtered update
is in place (REVIVE, arXiv 2601.11042). Weights are put in place as they will be stored, rounded to the stored dtype.

Legend: N facts, O output features, I input features; D, E the axes of the tensor as it lies on disk, R components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reviver.editing.editors.base import Editor, LayerProblem, ProtectedSpace
from reviver.editing.gradients import answer_signals
from reviver.editing.keys import SubjectStates, closed_directions, through_post_norm
from reviver.editing.layer import EditedLayer
from reviver.editing.model import EditableModel
from reviver.editing.targets import Targets, TargetSettings, find_targets
from reviver.errors import NumericsError
from reviver.facts.fact import Fact
from reviver.progress import NullProgress, Progress
from reviver.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How rounds are solved.

    Attributes:
        editor: the editor.
        editor_settings: its settings.
        filter: `none`, `revive` or `constrained`.
        targets: how targets are sought.
        maximum_relative_norm: a tensor whose updates of all versions together outgrow this multiple of the base's is refused.
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
        components: the id of the fact that each component of the round's factors belongs to; empty where facts are not apart.
        mean_loss: mean of the targets' losses at the end.
        mean_steps: mean number of steps that a target took.
        norms: Frobenius norm of this version's sum after the round, by tensor.
    """

    facts: tuple[str, ...]
    components: tuple[str, ...]
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
    if settings.editor.signal == "gradients":
        return _gradient_round(model, layers, facts, settings)
    targets = _find_targets(model, layers, facts, prefixes, settings, progress)
    budget = settings.targets.token_budget
    target_ON = targets.target_NO.T
    _move_to(model, layers, SubjectStates(model, facts, prefixes, token_budget=budget), target_ON, settings)
    components = [fact.id for fact in facts]
    if settings.editor.repeat is not None:
        _, state_ON = SubjectStates(model, facts, (), token_budget=budget).measure(layers[-1].layer)
        distance_N = torch.linalg.vector_norm(target_ON - state_ON, dim=0)
        again = settings.editor.repeat(distance_N, settings.editor_settings).nonzero().flatten().tolist()
        if again:
            repeated = [facts[index] for index in again]
            states = SubjectStates(model, repeated, prefixes, token_budget=budget)
            _move_to(model, layers, states, target_ON[:, again], settings)
            components += [fact.id for fact in repeated]
    _remember(model, layers, facts, prefixes, settings)
    return RoundRecord(
        facts=tuple(fact.id for fact in facts),
        components=tuple(components) if settings.editor.facts_apart else (),
        mean_loss=float(targets.loss_N.mean()),
        mean_steps=float(targets.steps_N.float().mean()),
        norms={edited.name: edited.total.running_norm() for edited in layers},
    )


def _find_targets(
    model: EditableModel,
    layers: Sequence[EditedLayer],
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    settings: RoundSettings,
    progress: Progress,
) -> Targets:
    """Find the targets on the weights that the editor asks for: as they are, or rewound to the base's.

    What is left of a target when the last edited block is reached, that block alone must write. Under `constrained` it is
    sought where that block may.
    """
    closed_OC = None
    if protected := _protected(layers[-1], settings):
        closed_OC = closed_directions(model, layers[-1].layer, protected.output_OK)

    def find() -> Targets:
        return find_targets(model, facts, prefixes, settings.targets, closed_OC=closed_OC, progress=progress)

    if settings.editor.targets_on == "current":
        return find()
    try:
        for edited in layers:
            model.put_weight(edited.layer, edited.base_DE)
        return find()
    finally:
        for edited in layers:
            model.put_weight(edited.layer, edited.stored())


def _move_to(
    model: EditableModel,
    layers: Sequence[EditedLayer],
    states: SubjectStates,
    target_ON: Tensor,
    settings: RoundSettings,
) -> None:
    """Bring the facts to their targets, one layer after the other."""
    for index, edited in enumerate(layers):
        key_IN, state_ON = states.measure(edited.layer)
        # What is missing is shared by the layers that are still to come.
        residual_ON = (target_ON - state_ON) / (len(layers) - index)
        residual_ON = through_post_norm(model, edited.layer, residual_ON, key_IN)
        _solve(model, edited, key_IN, residual_ON, settings)


def _protected(edited: EditedLayer, settings: RoundSettings) -> ProtectedSpace | None:
    """Return what the solve itself must keep out of; None under the other filters."""
    if settings.filter != "constrained" or edited.basis is None or edited.rank is None:
        return None
    return ProtectedSpace.of(edited.basis, edited.rank, transposed=edited.transposed)


def _solve(
    model: EditableModel, edited: EditedLayer, key_IN: Tensor, residual_ON: Tensor, settings: RoundSettings
) -> None:
    """Solve for one tensor, filter, and put the result in place."""
    problem = LayerProblem(
        keys_IN=key_IN,
        residual_ON=residual_ON,
        second_moment=edited.moment,
        memory=edited.memory,
        base_weight_OI=edited.oriented(edited.base_DE),
        weight_OI=edited.oriented(edited.live_DE),
        protected=_protected(edited, settings),
    )
    solution = settings.editor.solve(problem, settings.editor_settings)
    if solution.memory is not None:
        edited.memory = solution.memory
    edited.add(solution.update)
    _check(edited, settings)
    model.put_weight(edited.layer, edited.stored())


def _gradient_round(
    model: EditableModel, layers: Sequence[EditedLayer], facts: Sequence[Fact], settings: RoundSettings
) -> RoundRecord:
    """Solve from one backward pass: all layers' keys and gradients are read before the first weight changes."""
    signals = answer_signals(model, facts, token_budget=settings.targets.token_budget)
    for edited in layers:
        _solve(model, edited, signals.keys_IN[edited.layer], signals.gradient_ON[edited.layer], settings)
    return RoundRecord(
        facts=tuple(fact.id for fact in facts),
        components=tuple(facts[index].id for index in signals.fact_N) if settings.editor.facts_apart else (),
        mean_loss=signals.loss,
        mean_steps=1.0,
        norms={edited.name: edited.total.running_norm() for edited in layers},
    )


def _remember(
    model: EditableModel,
    layers: Sequence[EditedLayer],
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    settings: RoundSettings,
) -> None:
    """Read the round's keys again on the edited weights and add them to each layer's memory (AlphaEdit, section 3.4)."""
    if settings.editor.memory != "keys" or all(edited.memory is None for edited in layers):
        return
    states = SubjectStates(model, facts, prefixes, token_budget=settings.targets.token_budget)
    for edited in layers:
        key_IN, _ = states.measure(edited.layer)
        edited.memory = settings.editor.remember(edited.memory, key_IN)
        edited.remembered.append(key_IN.cpu())


def _check(edited: EditedLayer, settings: RoundSettings) -> None:
    """Raise where a tensor has become unfit to be written."""
    name = printable(edited.name, 120)
    if not bool(torch.isfinite(edited.live_DE).all()) or not bool(torch.isfinite(edited.stored()).all()):
        raise NumericsError(
            f"the update of `{name}` is NaN or infinite; nothing was written",
            hint="compute in float32 with `--dtype float32`, or use smaller rounds with `--round-size`",
            tensor=edited.name,
        )
    distance = edited.distance()
    if distance > settings.maximum_relative_norm:
        raise NumericsError(
            f"all updates together would move `{name}` by {distance:.1f} times its norm, beyond the limit of "
            f"{settings.maximum_relative_norm:g}; nothing was written",
            hint=f"edit fewer facts, {settings.editor.restraint} in `reviver.toml`, or raise `maximum_relative_norm` under [apply]",
            tensor=edited.name,
            distance=distance,
        )
