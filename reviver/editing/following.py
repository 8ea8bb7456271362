"""What a rank other than the first does: it waits to be told, does its share, hands it back, and waits again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.architecture import Family
from reviver.editing.base import corpus_of
from reviver.editing.bases import compute_bases
from reviver.editing.keys import SubjectStates
from reviver.editing.model import EditableModel, choose_device, load_model
from reviver.editing.moments import MomentSums, add_moments
from reviver.editing.placement import Placement
from reviver.editing.ranks import Ranks, joined
from reviver.editing.targets import TargetSettings, find_targets
from reviver.errors import UsageError
from reviver.facts.fact import Fact
from reviver.settings import Settings

Result = TypeVar("Result")


def with_all_ranks(settings: Settings, work: Callable[[Ranks], Result]) -> Result | None:
    """Do some work with the help of the other processes of this run, if there are any.

    Args:
        settings: the same in all processes.
        work: what the first rank does; the others help until it is done.

    Returns:
        What `work` returns; None in a process that helped.

    Raises:
        UsageError, ResourceError: so many processes make no sense here; see `joined`.
        RankError: another process ended before.
    """
    with joined(settings.apply.device) as ranks:
        if not ranks.follows:
            return work(ranks)
        follow(ranks, settings)
        return None


def follow(ranks: Ranks, settings: Settings) -> None:
    """Do what the first rank tells until it tells the end. Nothing is written, and nothing is printed.

    Args:
        ranks: the processes of this run; this one is not the first.
        settings: those of the first rank as well, of which device and corpus count.

    Raises:
        RankError: another process ended before.
        ReviverError: this rank's share went wrong.
    """
    follower = _Follower(ranks, settings)
    orders: Mapping[str, Callable[..., None]] = {
        "load": follower.load,
        "weight": follower.weight,
        "tensor": follower.tensor,
        "targets": follower.targets,
        "states": follower.states,
        "measure": follower.measure,
        "moments": follower.moments,
        "bases": follower.bases,
    }
    while (heard := ranks.hear())["order"] != "end":
        orders[heard.pop("order")](**heard)


class _Follower:
    """One follower between two orders: the model, and the states of the round."""

    def __init__(self, ranks: Ranks, settings: Settings) -> None:
        self._ranks = ranks
        self._settings = settings
        self._device = choose_device(settings.apply.device)
        self._loaded: EditableModel | None = None
        self._states: SubjectStates | None = None

    @property
    def _model(self) -> EditableModel:
        assert self._loaded is not None, "the first rank loads before it tells anything else"
        return self._loaded

    def load(
        self,
        folder: str,
        family: Mapping[str, Any],
        layers: list[int],
        names: list[str],
        dtype: str,
        placement: Mapping[str, list[int]],
    ) -> None:
        self._loaded = load_model(
            Path(folder),
            Family(**family),
            layers,
            dict(zip(layers, names, strict=True)),
            device=self._device,
            dtype=getattr(torch, dtype),
            placement=Placement(**{where: tuple(blocks) for where, blocks in placement.items()}),
            ranks=self._ranks,
        )

    def weight(self, layer: int) -> None:
        self._model.put_weight(layer, self._model.weight(layer))

    def tensor(self, name: str, shape: list[int]) -> None:
        self._model.put_tensor(name, torch.zeros(shape))

    def targets(
        self, facts: Sequence[object], prefixes: Sequence[str], settings: Mapping[str, Any], closed: int
    ) -> None:
        model = self._model
        closed_OC = torch.zeros((model.outer_width(model.layers[-1]), closed), device=model.device) if closed else None
        find_targets(model, _facts(facts), prefixes, TargetSettings(**settings), closed_OC=closed_OC)

    def states(self, facts: Sequence[object], prefixes: Sequence[str], token_budget: int) -> None:
        self._states = SubjectStates(self._model, _facts(facts), prefixes, token_budget=token_budget)

    def measure(self, layer: int) -> None:
        assert self._states is not None, "the first rank measures no states that it has not begun to follow"
        self._states.measure(layer)

    def moments(self, corpus: object, layers: list[int], tokens: int, seen: int, batches: int) -> None:
        own = corpus_of(self._settings)
        if own.describe() != corpus:
            raise UsageError(
                "the processes of this run do not read the same corpus", hint="give all of them the same settings"
            )
        sums = MomentSums.empty(self._model, layers)
        sums.tokens, sums.batches = seen, batches
        add_moments(self._model, own, sums, tokens=tokens)

    def bases(self, folder: str, widths: Mapping[str, int]) -> None:
        for _ in compute_bases(CheckpointFolder.open(Path(folder)), widths, self._device, self._ranks):
            raise AssertionError("a follower hands its bases back")


def _facts(records: Sequence[object]) -> list[Fact]:
    return [Fact.from_record(record) for record in records]
