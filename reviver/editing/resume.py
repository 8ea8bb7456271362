"""The finished rounds of an edit that was interrupted: what each added, saved as it ended, and put back bit for bit.

A round is one file of tensors and one record; the record is written last, so that a half-written round is no round. They belong
to one job, told by a fingerprint of everything that decides the result; the rounds of another job are thrown away. A replay
does the same additions in the same order, so that the patch of a resumed edit is that of an uninterrupted one.

Legend: I input features, N keys of a round; D, E the axes of the tensor as it lies on disk, R components.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reviver.editing.editors.base import Editor, Snapshot
from reviver.editing.layer import Addition, EditedLayer
from reviver.editing.rounds import RoundRecord
from reviver.editing.store import write_tensors
from reviver.files import disk_error, pretty_json, sha256_file, write_atomic
from reviver.history.intent import remove_tree

SCHEMA = 1


class FinishedRounds:
    """The rounds that an edit has finished, in a folder of their own.

    Args:
        folder: made when the first round is saved.
        job: fingerprint of the edit: of its parent, facts, settings, device and threads.
        editor: whose memory goes with the rounds.
    """

    def __init__(self, folder: Path, job: str, editor: Editor) -> None:
        self.folder = folder
        self.job = job
        self.editor = editor

    def _files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number:06d}.safetensors", self.folder / f"{number:06d}.json"

    def save(self, number: int, record: RoundRecord, layers: Sequence[EditedLayer]) -> None:
        """Save round `number`, counted from 1, and let the layers forget what was added since the round before.

        Raises:
            ResourceError: the disk is full or cannot be written to.
        """
        tensors: dict[str, Tensor] = {}
        for edited in layers:
            for index, addition in enumerate(edited.fresh):
                for kind in ("asked", "filtered"):
                    for side, tensor in enumerate(getattr(addition, kind)):
                        tensors[f"{edited.layer}.{index}.{kind}.{side}"] = tensor
            if self.editor.memory == "keys":
                if edited.remembered:
                    tensors[f"{edited.layer}.keys"] = edited.remembered[-1]
            elif isinstance(edited.memory, Snapshot):
                tensors |= {f"{edited.layer}.memory.{key}": value for key, value in edited.memory.tensors().items()}
            edited.fresh.clear()
        values, told = self._files(number)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            told.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        _, digest = write_tensors(values, tensors)
        write_atomic(told, pretty_json({"schema": SCHEMA, "job": self.job, "sha256": digest, "round": asdict(record)}))

    def restore(self, layers: Sequence[EditedLayer]) -> list[RoundRecord]:
        """Put every finished round of this job back into the layers, and return their records, oldest first.

        Rounds of another job, and whatever stands behind a gap or a damaged file, are removed.

        Raises:
            ResourceError: something cannot be removed.
        """
        records: list[RoundRecord] = []
        if not self.folder.is_dir():
            return records
        while (found := self._load(len(records) + 1)) is not None:
            record, tensors = found
            for edited in layers:
                _put_back(edited, tensors, self.editor)
            records.append(record)
        kept = {path.name for number in range(1, len(records) + 1) for path in self._files(number)}
        for path in self.folder.iterdir():
            if path.name not in kept:
                remove_tree(path)
        return records

    def _load(self, number: int) -> tuple[RoundRecord, dict[str, Tensor]] | None:
        values, told = self._files(number)
        try:
            record: Any = json.loads(told.read_bytes())
            if record["schema"] != SCHEMA or record["job"] != self.job or record["sha256"] != sha256_file(values):
                return None
            given = record["round"]
            facts, components = tuple(given.pop("facts")), tuple(given.pop("components"))
            return RoundRecord(facts=facts, components=components, **given), load_file(values)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
            # What cannot be read is solved for again: nothing here is the only copy of anything.
            return None

    def clear(self) -> None:
        """Forget all rounds."""
        if self.folder.is_dir():
            remove_tree(self.folder)


def _put_back(edited: EditedLayer, tensors: dict[str, Tensor], editor: Editor) -> None:
    """Do to a layer what a saved round did to it, with copies that lie in memory as what was solved for does."""
    device = edited.live_DE.device
    index = 0
    while f"{edited.layer}.{index}.filtered.0" in tensors:
        sides = [
            tuple(
                tensors[name].to(device, copy=True)
                for name in (f"{edited.layer}.{index}.{kind}.{side}" for side in (0, 1))
                if name in tensors
            )
            for kind in ("asked", "filtered")
        ]
        edited.put(Addition(asked=sides[0], filtered=sides[1]))
        index += 1
    edited.fresh.clear()
    keys_IN = tensors.get(f"{edited.layer}.keys")
    if keys_IN is not None:
        edited.memory = editor.remember(edited.memory, keys_IN)
        edited.remembered.append(keys_IN)
    start = f"{edited.layer}.memory."
    saved = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    if saved and editor.load_memory is not None:
        edited.memory = editor.load_memory(saved)
