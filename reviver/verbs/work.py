"""What an `apply` takes beside the model: the memory of the solves, and the disk that patch, rounds and derived matrices need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.editing.editors import Editor, get_editor
from reviver.editing.editors.need import WeightShape, Work
from reviver.editing.factors import bytes_to_save
from reviver.editing.preparation import Preparation
from reviver.editing.presets import Preset
from reviver.editing.resume import kept_bytes
from reviver.facts.fact import Fact
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.spectral.basis import RankChoice

PLAINEST = "memit"
"""The editor that is proposed where another needs too much memory."""


@dataclass(frozen=True, kw_only=True)
class PlannedWork:
    """The work on the edited tensors, by editor.

    Attributes:
        root: the workspace.
        parent: the version that is edited.
        pin, folder: the base.
        preset, settings: what editors are told, and how many facts make a round.
        facts: at least one.
        ranks: protected ranks by tensor; empty without a filter.
    """

    root: Path
    parent: str
    pin: BasePin
    folder: CheckpointFolder
    preset: Preset
    settings: Settings
    facts: Sequence[Fact]
    ranks: Mapping[str, RankChoice]

    def components(self, editor: Editor) -> int:
        """Return how many components the updates of a tensor have in all, at most; PRUNE's few corrections are left out."""
        if editor.signal == "gradients":
            # One a token of an answer, which is about four letters long.
            return sum(1 + len(fact.target_new) // 3 for fact in self.facts)
        return len(self.facts) * (1 if editor.repeat is None else 2)

    def is_thin(self, editor: Editor, name: str) -> bool:
        """Return whether the patch of a tensor stays two factors, since they take no more than the matrix."""
        rows, columns = self.folder.entry(name).shape
        return editor.factored and self.components(editor) * (rows + columns) <= rows * columns

    def of(self, editor: Editor, round_size: int) -> Work:
        """Return what the work takes with so many facts a round."""
        components = self.components(editor)
        columns = min(round_size, len(self.facts))
        if editor.signal == "gradients":
            columns = -(-columns * components // len(self.facts))
        basis, sums, needs = 0, 0, []
        for name in self.pin.edited:
            outputs, inputs = sorted(self.folder.entry(name).shape)
            sides = outputs + inputs
            rank = self.ranks[name].rank if name in self.ranks else 0
            # In float64; under `constrained` once more in the coordinates of the solve.
            basis += 16 * rank * sides
            sums += 8 * rank * sides
            sums += 4 * components * sides if self.is_thin(editor, name) else 8 * outputs * inputs
            shape = WeightShape(
                outputs=outputs,
                inputs=inputs,
                facts=columns,
                total=components,
                remembered=self._remembered(editor, outputs, inputs),
            )
            needs.append(editor.need(self._settings(editor), shape))
        return Work(needs=needs, basis=basis, sums=sums)

    def instead_of(self, editor: Editor, round_size: int) -> dict[str, Work]:
        """Return the work under options that take less, by option: fewer facts a round, and the plainest editor."""
        largest = min(round_size, len(self.facts))
        fewer = {f"--round-size {largest // part}": largest // part for part in (2, 4, 10) if largest >= 2 * part}
        found = {option: self.of(editor, size) for option, size in fewer.items()}
        if editor.name != PLAINEST:
            found[f"--editor {PLAINEST}"] = self.of(get_editor(PLAINEST), round_size)
        return found

    def bytes_to_write(self, editor: Editor, device: torch.device) -> int:
        """Return the bytes of the patch, of the finished rounds, and of what is kept for later edits, at most."""
        components = self.components(editor)
        preparation = Preparation(Workspace.open(self.root), self.pin, self.folder)
        total = 0
        for name, need in zip(self.pin.edited, self.of(editor, 1).needs, strict=True):
            rows, columns = self.folder.entry(name).shape
            total += 4 * (components * (rows + columns) if self.is_thin(editor, name) else rows * columns)
            keys = max(rows, columns) * len(self.facts) if self._remembers_keys(editor, rows, columns) else 0
            total += kept_bytes(
                (rows, columns),
                components=components,
                rank=self.ranks[name].rank if name in self.ranks else None,
                whole=not editor.factored,
                keys=keys,
                snapshot=need.snapshot,
            )
            total += 4 * keys + need.snapshot
            if editor.needs_second_moment:
                total += bytes_to_save(preparation, name, device, null_space=need.null_space)
        return total

    def _settings(self, editor: Editor) -> object:
        return self.preset.editor_settings(editor, self.settings.editors.get(editor.name, {}))

    def _remembers_keys(self, editor: Editor, outputs: int, inputs: int) -> bool:
        return editor.memory == "keys" and editor.begin(self._settings(editor), outputs, inputs) is not None

    def _remembered(self, editor: Editor, outputs: int, inputs: int) -> int:
        """Return how many keys are remembered in the end: those of the versions below, and this one's."""
        if not self._remembers_keys(editor, outputs, inputs):
            return 0
        return len(self.facts) + self._facts_below

    @cached_property
    def _facts_below(self) -> int:
        return sum(version.manifest.facts.count for version in Workspace.open(self.root).chain(self.parent))
