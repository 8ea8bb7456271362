"""A model that is edited again and again from its base: what the benchmarks of quality and of long histories share.

The base is prepared once in a workspace of its own; every run begins with the base's weights, draws its facts by seed, and
edits in memory, so that nothing but the editing is repeated.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from reviver.editing.base import open_base, open_pinned, put_version, saved_preset
from reviver.editing.editors import Editor, get_editor
from reviver.editing.layer import EditedLayer
from reviver.editing.model import EditableModel, choose_device
from reviver.editing.prefixes import write_prefixes
from reviver.editing.preparation import Preparation
from reviver.editing.rounds import RoundRecord, RoundSettings
from reviver.editing.session import FilterChoice, choose_ranks, open_layers, run_rounds, split_rounds
from reviver.editing.targets import target_settings
from reviver.facts.fact import Fact
from reviver.facts.reader import read_facts
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.verbs.init import init

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "reviver" / "demo" / "model"
FACTS = ROOT / "edits" / "world.jsonl"


class Patient:
    """A prepared base.

    Args:
        folder: an empty folder for its workspace.
        model: the checkpoint.
        given: settings by `section.key`, over those of the model's preset.
    """

    def __init__(self, folder: Path, model: Path = MODEL, given: Mapping[str, object] | None = None) -> None:
        self.settings = Settings.load(folder, {"apply.rank": 64, **(given or {})})
        init(folder, str(model), settings=self.settings)
        workspace = Workspace.open(folder)
        pin = workspace.pin()
        self.folder = open_base(pin)
        self.model: EditableModel = open_pinned(
            pin, self.folder, self.settings, choose_device(self.settings.apply.device)
        )
        self.preparation = Preparation(workspace, pin, self.folder)
        self.preset = saved_preset(pin, self.folder)
        wanted = self.settings.targets
        self.prefixes = write_prefixes(self.model, count=wanted.prefixes, tokens=wanted.prefix_length, seed=wanted.seed)

    def editor_settings(self, editor: Editor, given: Mapping[str, object] | None = None) -> object:
        """Return an editor's settings: the preset's, and over them what is given."""
        return self.preset.editor_settings(editor, given or {})

    def rewind(self) -> None:
        """Put the base's weights back."""
        put_version(self.model, self.folder, {name: [] for name in self.preparation.pin.edited})

    def edit(
        self,
        facts: Sequence[Fact],
        *,
        editor: str = "memit",
        filter_name: str = "revive",
        rank: int | None = None,
        energy: float | None = None,
        round_size: int = 100,
        weight: float | None = None,
        editor_settings: Mapping[str, object] | None = None,
        targets: Mapping[str, float] | None = None,
        after_round: Callable[[int, RoundRecord, list[EditedLayer]], None] | None = None,
    ) -> list[EditedLayer]:
        """Edit the base with some facts, and return the edited layers; the model holds the result.

        Args:
            facts: solved for in their order, `round_size` at a time.
            editor, filter_name, rank, energy: as the options of `apply`.
            round_size: facts of a round.
            weight: λ instead of the workspace's.
            editor_settings: over the preset's.
            targets: settings of the target search over the workspace's.
            after_round: called with the number of rounds done, the last one's record, and the layers.
        """
        self.rewind()
        chosen = get_editor(editor)
        if filter_name != "none" and rank is None and energy is None:
            rank = self.preset.rank
        choice = FilterChoice(name=filter_name, rank=rank, energy=energy)
        layers = open_layers(
            self.model,
            self.preparation,
            {},
            choose_ranks(self.preparation, choice, self.model.device),
            chosen,
            moment_weight=weight or self.settings.moments.weight or self.preset.moment_weight,
        )
        settings = RoundSettings(
            editor=chosen,
            editor_settings=self.editor_settings(chosen, editor_settings),
            filter=filter_name,
            targets=replace(target_settings(self.settings.targets, self.preset), **(targets or {})),
            maximum_relative_norm=float("inf"),
        )

        def seen(number: int, record: RoundRecord) -> None:
            if after_round is not None:
                after_round(number, record, layers)

        for edited in layers:
            outputs, inputs = edited.oriented(edited.base_DE).shape
            edited.memory = chosen.begin(settings.editor_settings, outputs, inputs)
        run_rounds(self.model, layers, split_rounds(facts, round_size), self.prefixes, settings, after_round=seen)
        return layers


def draw(path: Path, count: int, seed: int) -> list[Fact]:
    """Return facts drawn by seed from all there are, never picked."""
    return random.Random(seed).sample(list(read_facts(path).facts), count)


def held_out_texts() -> list[str]:
    """Return prose of the packaged model's world that it was not trained on."""
    lines = (ROOT / "edits" / "held-out.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]


def machine() -> dict[str, str]:
    """Return when and on what a benchmark ran."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}",
    }
