"""An edit from its first round to its last: the tensors of one parent version, opened and carried through all rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reviver.checkpoint.delta import Delta, LowRankDelta
from reviver.editing.editors import Editor
from reviver.editing.factors import open_moment
from reviver.editing.layer import EditedLayer
from reviver.editing.model import EditableModel
from reviver.editing.preparation import Preparation, read_weight
from reviver.editing.resume import FinishedRounds
from reviver.editing.rounds import RoundRecord, RoundSettings, run_round
from reviver.facts.fact import Fact
from reviver.progress import NullProgress, Progress
from reviver.spectral.basis import RankChoice, choose_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterChoice:
    """Which filter, and how much it protects.

    Attributes:
        name: `none`, `revive` or `constrained`.
        rank: protected rank k, if it was given or is the default.
        energy: protected share τ of the energy, if it was given.
    """

    name: str
    rank: int | None
    energy: float | None


def choose_ranks(preparation: Preparation, choice: FilterChoice, device: torch.device) -> dict[str, RankChoice]:
    """Return the protected rank of every edited tensor; nothing without a filter.

    Raises:
        UsageError: the rank or energy is out of range for a tensor.
    """
    if choice.name == "none":
        return {}
    chosen = {}
    for name in preparation.pin.edited:
        basis = preparation.basis(name, max(1, preparation.basis_width(name)), device)
        chosen[name] = choose_rank(
            basis.singular_values, rank=choice.rank, energy=choice.energy, frobenius=basis.frobenius
        )
    return chosen


def real_sum(base_DE: Tensor, deltas: Sequence[Delta]) -> Tensor:
    """Return base plus deltas in float32, summed in float64: what a version's tensor is before it is rounded.

    Args:
        base_DE: the base tensor in its stored dtype.
        deltas: of the version's chain, oldest first.
    """
    # Summed in a copy of its own: rounds add to the result, and the base must stay what it is.
    total_DE = base_DE.to(torch.float64, copy=True)
    for delta in deltas:
        if isinstance(delta, LowRankDelta):
            left, right = (torch.from_numpy(factor.copy()).to(total_DE) for factor in (delta.left, delta.right))
            total_DE += left @ right
        else:
            total_DE += torch.from_numpy(delta.values.copy()).to(total_DE)
    return total_DE.float()


def open_layers(
    model: EditableModel,
    preparation: Preparation,
    chain: Mapping[str, Sequence[Delta]],
    ranks: Mapping[str, RankChoice],
    editor: Editor,
    *,
    moment_weight: float,
) -> list[EditedLayer]:
    """Return the edited tensors as the parent version has them.

    Args:
        model: holds the parent version.
        preparation: spectral bases and second moments.
        chain: the parent's deltas by tensor, oldest first.
        ranks: protected ranks by tensor; empty without a filter.
        editor: decides whether second moments are needed.
        moment_weight: λ.
    """
    layers = []
    for layer in model.layers:
        name = model.names[layer]
        base_DE = read_weight(preparation.folder, name, model.device)
        rank = ranks[name].rank if name in ranks else None
        moment = None
        if editor.needs_second_moment:
            moment = open_moment(preparation, name, moment_weight, model.device)
        edited = EditedLayer(
            layer=layer,
            name=name,
            dtype=preparation.folder.entry(name).dtype,
            transposed=model.family.transposed,
            base_DE=base_DE,
            live_DE=real_sum(base_DE, chain.get(name, ())),
            basis=None if rank is None else preparation.basis(name, rank, model.device).narrow(rank),
            rank=rank,
            moment=moment,
        )
        layers.append(edited)
    return layers


def split_rounds(facts: Sequence[Fact], size: int) -> list[tuple[Fact, ...]]:
    """Return the facts in rounds of at most `size`, in their order."""
    return [tuple(facts[start : start + size]) for start in range(0, len(facts), size)]


def run_rounds(
    model: EditableModel,
    layers: Sequence[EditedLayer],
    rounds: Sequence[Sequence[Fact]],
    prefixes: Sequence[str],
    settings: RoundSettings,
    *,
    after_round: Callable[[int, RoundRecord], None] | None = None,
    finished: FinishedRounds | None = None,
    progress: Progress | None = None,
) -> list[RoundRecord]:
    """Run all rounds; the model is left with the weights of the last.

    Args:
        model: holds the parent version.
        layers: the edited tensors, with the editor's memory.
        rounds: the facts of each round.
        prefixes: texts before the prompts.
        settings: editor, filter, targets.
        after_round: called with the number of each round, from 1, when it is done.
        finished: keeps every round as it ends; those that it holds already are put back and not solved for again.
        progress: told about rounds and targets.

    Raises:
        NumericsError: a round went wrong; see `run_round`.
        ResourceError: a finished round cannot be saved.
    """
    progress = progress or NullProgress()
    records = [] if finished is None else finished.restore(layers)
    if records:
        for edited in layers:
            model.put_weight(edited.layer, edited.stored())
    with progress.task("edit", total=sum(len(one) for one in rounds), unit="facts") as task:
        task.advance(sum(len(record.facts) for record in records))
        for number, facts in enumerate(rounds[len(records) :], len(records) + 1):
            record = run_round(model, layers, facts, prefixes, settings, progress=progress)
            records.append(record)
            task.advance(len(facts))
            if finished is not None:
                finished.save(number, record, layers)
            for edited in layers:
                edited.fresh.clear()
            if after_round is not None:
                after_round(number, record)
    return records
