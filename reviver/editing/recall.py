"""What an editor remembers across versions: read for the parent's chain before an edit, saved with the version it makes.

A version's part of the memory is kept under the version's id, so that whatever moves the head moves the memory with it: `undo`
takes it back, a branch has its own, a dropped fact drops its key. Keys that are missing (a cloned history, a version by an
editor that keeps none) are read again on the weights of their version; sums of unpruned updates and running moments cannot be
had again: a version without its own is refused by name (a squash has none, and moments begin anew behind it). Both may be known
of one version, and lie side by side.

Legend: N facts of a version, I MLP width, O output features; D, E the axes of the tensor as it lies on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from reviver.checkpoint.delta import Delta, LowRankDelta
from reviver.editing.base import put_version
from reviver.editing.editors.base import DenseUpdate, Editor, FactoredUpdate, Snapshot, Update
from reviver.editing.keys import SubjectStates
from reviver.editing.layer import EditedLayer
from reviver.editing.model import EditableModel
from reviver.editing.preparation import Preparation
from reviver.editing.store import MatrixStore
from reviver.errors import ManifestError, WorkspaceError
from reviver.facts.fact import Fact
from reviver.history.chain import chain_deltas, known_facts
from reviver.history.ledger import taken_back
from reviver.history.manifest import Manifest
from reviver.history.version import Version
from reviver.history.workspace import Workspace


class Recall:
    """The memory of one editor in one workspace.

    Args:
        workspace: keeps the memory.
        preparation: knows the base; its tensors' hashes fingerprint what is kept.
        editor: whose memory it is.
        settings: the editor's settings.
        prefixes: the contexts in which keys are read again of versions that tell none (a merge, a squash).
    """

    def __init__(
        self,
        workspace: Workspace,
        preparation: Preparation,
        editor: Editor,
        settings: object,
        prefixes: tuple[str, ...],
    ) -> None:
        self.workspace = workspace
        self.preparation = preparation
        self.editor = editor
        self.settings = settings
        self.prefixes = prefixes

    def _snapshots(self, version_id: str) -> MatrixStore:
        """Return where a version's sum or moments lie: one file a tensor, named as the tensor is."""
        return MatrixStore(lambda name: self.workspace.memory_file(version_id, name), "editor's memory")

    def _keys(self, version_id: str) -> MatrixStore:
        """Return where a version's keys lie: `TENSOR.keys`, beside a snapshot of the editor that made it."""
        return MatrixStore(lambda name: self.workspace.memory_file(version_id, f"{name}.keys"), "editor's memory")

    def _fingerprint(self, name: str) -> str:
        return self.preparation.pin.tensor_sha256[name]

    # Before an edit.

    def into(self, layers: Sequence[EditedLayer], chain: Sequence[Version], model: EditableModel) -> None:
        """Give every layer the memory that the parent's chain leaves it.

        Args:
            layers: the edited tensors as the parent has them.
            chain: the parent's versions, oldest first.
            model: holds the parent; used where keys have to be read again, and left as it was.

        Raises:
            BaseMismatchError: a memory belongs to another base.
            WorkspaceError: a memory is missing or damaged and cannot be made again.
        """
        for edited in layers:
            outputs, inputs = edited.oriented(edited.base_DE).shape
            edited.memory = self.editor.begin(self.settings, outputs, inputs)
        if self.editor.memory == "keys" and all(edited.memory is not None for edited in layers):
            self._recall_keys(layers, chain, model)
        elif self.editor.memory in ("total", "moments"):
            self._recall_snapshot(layers, chain)

    def _recall_keys(self, layers: Sequence[EditedLayer], chain: Sequence[Version], model: EditableModel) -> None:
        """Add the keys of every fact that is still in force, version by version."""
        in_force = {(known.version, known.fact.key) for known in known_facts(chain).values()}
        changed: dict[str, Sequence[Delta]] = {}
        for number, version in enumerate(chain, 1):
            facts = version.facts()
            kept = [index for index, fact in enumerate(facts) if (version.name, fact.key) in in_force]
            if not kept:
                continue
            keys = self._saved_keys(layers, version, len(facts))
            if keys is None:
                # An adopted version may have changed tensors that this editor leaves alone.
                none: dict[str, Sequence[Delta]] = {edited.name: () for edited in layers}
                changed = changed or {**none, **chain_deltas(chain, self.preparation.pin)}
                keys = self._read_keys_again(layers, chain[:number], facts, model, changed)
            for edited in layers:
                edited.memory = self.editor.remember(edited.memory, keys[edited.name][:, kept])
        if changed:
            put_version(model, self.preparation.folder, changed)

    def _saved_keys(self, layers: Sequence[EditedLayer], version: Version, facts: int) -> dict[str, Tensor] | None:
        """Return the keys `[I, N]` that a version saved, by tensor; None where one is missing or does not fit."""
        store, found = self._keys(version.id), {}
        for edited in layers:
            kept = store.load(edited.name, self._fingerprint(edited.name))
            keys_IN = None if kept is None else kept[0].get("keys")
            inputs = edited.oriented(edited.base_DE).shape[1]
            if keys_IN is None or tuple(keys_IN.shape) != (inputs, facts):
                return None
            found[edited.name] = keys_IN
        return found

    def _read_keys_again(
        self,
        layers: Sequence[EditedLayer],
        chain: Sequence[Version],
        facts: Sequence[Fact],
        model: EditableModel,
        changed: Collection[str],
    ) -> dict[str, Tensor]:
        """Read the keys `[I, N]` of the facts of a chain's last version on its weights, and save them.

        `changed` are the tensors in which the model may differ from the base.
        """
        version = chain[-1]
        deltas: Mapping[str, Sequence[Delta]] = chain_deltas(chain, self.preparation.pin)
        put_version(model, self.preparation.folder, {name: deltas.get(name, ()) for name in changed})
        prefixes = _prefixes_of(version)
        states = SubjectStates(model, facts, self.prefixes if prefixes is None else prefixes)
        keys = {edited.name: states.measure(edited.layer)[0].cpu() for edited in layers}
        self._save(self._keys(version.id), version.id, {name: {"keys": keys_IN} for name, keys_IN in keys.items()})
        return keys

    def _recall_snapshot(self, layers: Sequence[EditedLayer], chain: Sequence[Version]) -> None:
        """Take up what the last version of this editor saved, and add to a total what other versions have changed since.

        A total of which a part was taken back is summed again of the patches: what was held back of it is gone with it. Moments
        are those of the last version that was not taken back whole.
        """
        taken = _taken_back(chain)
        own = [n for n, version in enumerate(chain, 1) if version.manifest.editor.name == self.editor.name]
        if self.editor.start_from is None:
            own = [n for n in own if not taken.get(chain[n - 1].id, False)]
        last = max(own, default=0)
        if self.editor.start_from is not None and any(version.id in taken for version in chain[:last]):
            last = 0
        if last:
            saved = self._saved_snapshot(layers, chain[last - 1])
            for edited in layers:
                edited.memory = saved[edited.name]
        if self.editor.start_from is None:
            return
        for edited in layers:
            if edited.memory is None:
                edited.memory = self.editor.start_from(edited.oriented(edited.base_DE))
        for version in chain[last:]:
            deltas = version.patch().deltas()
            for edited in layers:
                add = getattr(edited.memory, "plus", None)
                if edited.name in deltas and add is not None:
                    edited.memory = add(_as_update(deltas[edited.name], edited.transposed))

    def _saved_snapshot(self, layers: Sequence[EditedLayer], version: Version) -> dict[str, Snapshot]:
        store, found = self._snapshots(version.id), {}
        load = self.editor.load_memory
        for edited in layers:
            kept = store.load(edited.name, self._fingerprint(edited.name))
            if kept is None or load is None:
                raise WorkspaceError(
                    f"what `{self.editor.name}` remembers of {version.name} is missing, and cannot be made again",
                    hint="copy `.reviver/memory` from where the version was made, or use `--editor memit`",
                    version=version.name,
                )
            try:
                found[edited.name] = load(kept[0])
            except ManifestError as error:
                raise WorkspaceError(
                    f"what `{self.editor.name}` remembers of {version.name} is damaged",
                    hint="copy `.reviver/memory` from where the version was made, or use `--editor memit`",
                    version=version.name,
                ) from error
        return found

    # After an edit.

    def save(self, manifest: Manifest, layers: Sequence[EditedLayer]) -> None:
        """Save the part of a version that is about to be committed; it is in its place when the version is.

        Raises:
            ResourceError: the disk is full or cannot be written to.
        """
        draft = self.workspace.memory_draft(manifest.version).name
        if self.editor.memory == "keys":
            store = self._keys(draft)
            parts = {
                edited.name: {"keys": torch.cat(edited.remembered, dim=1)} for edited in layers if edited.remembered
            }
        else:
            store = self._snapshots(draft)
            parts = {edited.name: edited.memory.tensors() for edited in layers if isinstance(edited.memory, Snapshot)}
        self._save(store, manifest.id, parts)

    def _save(self, store: MatrixStore, version_id: str, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, tensors in parts.items():
            record = {"editor": self.editor.name, "version_id": version_id}
            store.save(name, self._fingerprint(name), tensors, record)


def _taken_back(chain: Sequence[Version]) -> dict[str, bool]:
    """Return the ids of the versions that a chain takes something back of, each with whether it is taken back whole."""
    found: dict[str, bool] = {}
    for version in reversed(chain):
        # What was itself taken back takes nothing back any more.
        if not found.get(version.id, False):
            for taken in taken_back(version):
                found[taken.version] = found.get(taken.version, False) or taken.whole
    return found


def _prefixes_of(version: Version) -> tuple[str, ...] | None:
    """Return the prefixes that a version's rounds were solved with, as its manifest says; None where it does not."""
    for entry in version.manifest.rounds:
        prefixes = entry.get("prefixes") if isinstance(entry, Mapping) else None
        if isinstance(prefixes, Sequence) and all(isinstance(prefix, str) for prefix in prefixes):
            return tuple(prefixes)
    return None


def _as_update(delta: Delta, transposed: bool) -> Update:
    """Return a stored delta, `[D, E]`, as an update of the weight `[O, I]`."""
    if isinstance(delta, LowRankDelta):
        left_DR, right_RE = (torch.from_numpy(factor.copy()).double() for factor in (delta.left, delta.right))
        return FactoredUpdate(right_RE.T, left_DR.T) if transposed else FactoredUpdate(left_DR, right_RE)
    values_DE = torch.from_numpy(delta.values.copy()).double()
    return DenseUpdate(values_DE.T if transposed else values_DE)
