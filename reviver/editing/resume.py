"""The finished rounds of an edit that was interrupted: what each added, saved as it ended, and put back bit for bit.

A round is a file of the factors and keys that it added, a file of the state that it left, and a record, which is written last, so
that a half-written round is no round. The state is what grows with no round: sums of whole matrices, what the filter took, an
editor's sums over earlier rounds. Only the last round's is kept. Rounds belong to one job, told by a fingerprint of everything
that decides the result; those of another job are thrown away. A replay does the same additions in the same order, and a state
goes on from the same sums, so that the patch of a resumed edit is that of an uninterrupted one.

Legend: I input features, N keys of a round; D, E the axes of the tensor as it lies on disk, R components.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from reviver.editing.editors.base import Editor, Snapshot
from reviver.editing.layer import EditedLayer
from reviver.editing.rounds import RoundRecord
from reviver.editing.store import write_tensors
from reviver.files import disk_error, pretty_json, sha256_file, write_atomic
from reviver.history.intent import remove_tree

SCHEMA = 2


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

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _added(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _state(self, number: int) -> Path:
        return self.folder / f"{number:06d}.state.safetensors"

    def save(self, number: int, record: RoundRecord, layers: Sequence[EditedLayer]) -> None:
        """Save round `number`, counted from 1, and let the layers forget what was added since the round before.

        Raises:
            ResourceError: the disk is full or cannot be written to.
        """
        added: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for edited in layers:
            for index, (left_DR, right_RE) in enumerate(edited.fresh):
                added[f"{edited.layer}.{index}.left"], added[f"{edited.layer}.{index}.right"] = left_DR, right_RE
            state |= {f"{edited.layer}.{key}": values for key, values in edited.state().items()}
            if self.editor.memory == "keys":
                if edited.remembered:
                    added[f"{edited.layer}.keys"] = edited.remembered[-1]
            elif isinstance(edited.memory, Snapshot):
                state |= {f"{edited.layer}.memory.{key}": values for key, values in edited.memory.tensors().items()}
            edited.fresh.clear()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._record(number).unlink(missing_ok=True)
            hashes = {
                "sha256": write_tensors(self._added(number), added)[1],
                "state_sha256": write_tensors(self._state(number), state)[1],
            }
            told = {"schema": SCHEMA, "job": self.job, **hashes, "round": asdict(record)}
            write_atomic(self._record(number), pretty_json(told))
            # Only now is the state before of no use.
            self._state(number - 1).unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def restore(self, layers: Sequence[EditedLayer]) -> list[RoundRecord]:
        """Put the finished rounds of this job back into the layers, and return their records, oldest first.

        Rounds of another job, and whatever stands behind a gap or a damaged file, are removed.

        Raises:
            ResourceError: something cannot be removed.
        """
        records: list[RoundRecord] = []
        if not self.folder.is_dir():
            return records
        states: list[bool] = []
        while (found := self._read(len(records) + 1)) is not None:
            records.append(found[0])
            states.append(found[1])
        while states and not states[-1]:
            records.pop()
            states.pop()
        for number in range(1, len(records) + 1):
            added = load_file(self._added(number))
            for edited in layers:
                _put_back(edited, added, self.editor)
        if records:
            state = load_file(self._state(len(records)))
            for edited in layers:
                _go_on(edited, state, self.editor)
        kept = {path(number).name for number in range(1, len(records) + 1) for path in (self._added, self._record)}
        kept.add(self._state(len(records)).name)
        for path in self.folder.iterdir():
            if path.name not in kept:
                remove_tree(path)
        return records

    def _read(self, number: int) -> tuple[RoundRecord, bool] | None:
        """Return the record of a round, and whether the state that it left is here too; None where it is no round of this job."""
        try:
            record: Any = json.loads(self._record(number).read_bytes())
            if record["schema"] != SCHEMA or record["job"] != self.job:
                return None
            if record["sha256"] != sha256_file(self._added(number)):
                return None
            given = record["round"]
            facts, components = tuple(given.pop("facts")), tuple(given.pop("components"))
            state = self._state(number)
            whole = state.exists() and record["state_sha256"] == sha256_file(state)
            return RoundRecord(facts=facts, components=components, **given), whole
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # What cannot be read is solved for again: nothing here is the only copy of anything.
            return None

    def clear(self) -> None:
        """Forget all rounds."""
        if self.folder.is_dir():
            remove_tree(self.folder)


def _put_back(edited: EditedLayer, added: Mapping[str, Tensor], editor: Editor) -> None:
    """Add to a layer what a saved round added to it, with copies that lie in memory as what was solved for does."""
    device = edited.live_DE.device
    index = 0
    while f"{edited.layer}.{index}.left" in added:
        left_DR, right_RE = (added[f"{edited.layer}.{index}.{side}"] for side in ("left", "right"))
        edited.put(left_DR.to(device, copy=True), right_RE.to(device, copy=True))
        index += 1
    edited.fresh.clear()
    keys_IN = added.get(f"{edited.layer}.keys")
    if keys_IN is not None:
        edited.memory = editor.remember(edited.memory, keys_IN)
        edited.remembered.append(keys_IN)


def _go_on(edited: EditedLayer, state: Mapping[str, Tensor], editor: Editor) -> None:
    """Give a layer the state that the last saved round left it."""
    start = f"{edited.layer}."
    # In copies: what is read from a file must not be added to.
    own = {name.removeprefix(start): values.clone() for name, values in state.items() if name.startswith(start)}
    memory = {name.removeprefix("memory."): own.pop(name) for name in tuple(own) if name.startswith("memory.")}
    edited.go_on_from(own)
    if memory and editor.load_memory is not None:
        edited.memory = editor.load_memory(memory)


def kept_bytes(
    shape: Sequence[int], *, components: int, rank: int | None, whole: bool, keys: int, snapshot: int
) -> int:
    """Return how much of the disk the rounds of one tensor take at most, while they are kept.

    The state of a round is written before that of the round before is removed, so that there may be two.

    Args:
        shape: of the tensor on disk.
        components: of all updates together.
        rank: protected rank; None without a filter.
        whole: whether updates are whole matrices.
        keys: numbers in all keys that are remembered.
        snapshot: bytes of the editor's sums over earlier rounds.
    """
    rows, columns = shape
    state = 8 * (rank or 0) * (rows + columns) + (12 * rows * columns if whole else 0) + snapshot
    return 4 * (0 if whole else components) * (rows + columns) + 4 * keys + 2 * state
