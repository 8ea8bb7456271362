"""What is derived from a base before it is edited: spectral bases and second moments, computed once and kept beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.editing.corpus import Corpus
from reviver.editing.model import TORCH_DTYPES, EditableModel
from reviver.editing.moments import MomentSums, add_moments, moments_record
from reviver.editing.store import MatrixStore
from reviver.errors import NumericsError, WorkspaceError
from reviver.history.intent import remove_tree
from reviver.history.workspace import Workspace
from reviver.progress import Progress
from reviver.spectral.basis import SpectralBasis, compute_basis
from reviver.text import printable

SAVE_SECONDS = 30.0
"""How often the running sums of a pass over a corpus are saved, at most; what a kill can cost."""


def read_weight(folder: CheckpointFolder, name: str, device: torch.device) -> Tensor:
    """Return a tensor of the base, `[D, E]`, in its stored dtype."""
    entry = folder.entry(name)
    raw = bytearray(folder.read_tensor(name))
    return torch.frombuffer(raw, dtype=TORCH_DTYPES[entry.dtype]).view(entry.shape).to(device)


class Preparation:
    """The derived matrices of one workspace's base.

    Args:
        workspace: where they are kept.
        pin: the base; its tensors' hashes fingerprint everything here.
        folder: the base's files.
    """

    def __init__(self, workspace: Workspace, pin: BasePin, folder: CheckpointFolder) -> None:
        self.pin = pin
        self.folder = folder
        self.spectra = MatrixStore(workspace.spectrum_file, "spectral basis")
        # Reading a basis and making it orthonormal again is done once, however often a command needs it.
        self._bases: dict[tuple[str, torch.device], SpectralBasis] = {}
        self.moments = MatrixStore(workspace.statistics_file, "second moment")
        self.factors = MatrixStore(
            lambda name: _beside(workspace.statistics / "factors", workspace.statistics_file(name)),
            "factor of the second moment",
        )
        self.null_spaces = MatrixStore(
            lambda name: _beside(workspace.statistics / "null_spaces", workspace.statistics_file(name)),
            "null space of the second moment",
        )
        self._sums = workspace.sums
        self._partial = MatrixStore(lambda name: _beside(self._sums, workspace.statistics_file(name)), "partial sum")

    # Spectral bases.

    def basis_width(self, name: str) -> int:
        """Return how many directions a side are kept for a tensor; 0 where there is no basis."""
        record = self.spectra.record(name, self.pin.tensor_sha256[name])
        width = None if record is None else record.get("width")
        return width if isinstance(width, int) else 0

    def basis(self, name: str, width: int, device: torch.device) -> SpectralBasis:
        """Return the spectral basis of a tensor, at least `width` wide; computed and saved where it is missing or narrower.

        Raises:
            BaseMismatchError: what is kept belongs to another base.
            NumericsError: the tensor is not finite.
        """
        held = self._bases.get((name, device))
        if held is None or held.width < width:
            held = self._bases[name, device] = self._load_basis(name, width, device)
        return held

    def _load_basis(self, name: str, width: int, device: torch.device) -> SpectralBasis:
        fingerprint = self.pin.tensor_sha256[name]
        kept = self.spectra.load(name, fingerprint) if self.basis_width(name) >= width else None
        if kept is not None:
            tensors, record = kept
            try:
                return SpectralBasis.restored(
                    tensors["left"].double(),
                    tensors["right"].double(),
                    tensors["singular_values"],
                    float(str(record["frobenius"])),
                    device=device,
                )
            except (KeyError, ValueError) as error:
                raise WorkspaceError(
                    f"the spectral basis of `{printable(name, 100)}` is damaged",
                    hint="delete `.reviver/spectra` and run `reviver init MODEL` again",
                ) from error
        basis = compute_basis(read_weight(self.folder, name, device), width, device=device)
        self.keep_basis(name, basis)
        return basis

    def keep_basis(self, name: str, basis: SpectralBasis) -> None:
        """Save the spectral basis of a tensor."""
        self.spectra.save(
            name,
            self.pin.tensor_sha256[name],
            {
                "left": basis.left_DK.float(),
                "right": basis.right_EK.float(),
                "singular_values": basis.singular_values,
            },
            {"width": basis.width, "frobenius": basis.frobenius},
        )

    # Second moments.

    def missing_moments(self) -> list[int]:
        """Return the edited blocks whose second moment is not there yet."""
        return [
            layer
            for layer, name in zip(self.pin.layers, self.pin.edited, strict=True)
            if self.moments.record(name, self.pin.tensor_sha256[name]) is None
        ]

    def moments_of_other_text(self, corpus: Corpus) -> list[str]:
        """Return the edited tensors whose second moment is there and comes from another corpus."""
        described = corpus.describe()
        records = {name: self.moments.record(name, self.pin.tensor_sha256[name]) for name in self.pin.edited}
        return [name for name, record in records.items() if record is not None and record.get("corpus") != described]

    def second_moment(self, name: str) -> Tensor:
        """Return `E[k kᵀ]` of an edited tensor, `[I, I]`, float32.

        Raises:
            WorkspaceError: it is not there.
            BaseMismatchError: it belongs to another base.
        """
        kept = self.moments.load(name, self.pin.tensor_sha256[name])
        if kept is None or "second_moment" not in kept[0]:
            raise WorkspaceError(
                f"the second moment of `{printable(name, 100)}` is missing",
                hint="finish the preparation with `reviver init MODEL`",
            )
        return kept[0]["second_moment"]

    def compute_moments(
        self,
        model: EditableModel,
        layers: Sequence[int],
        corpus: Corpus,
        *,
        tokens: int,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> int:
        """Compute and save the second moments of some blocks in one pass; goes on where an interrupted pass stopped.

        Returns:
            The number of tokens read in all.
        """
        names = dict(zip(self.pin.layers, self.pin.edited, strict=True))
        sums = self._resume(model, layers, corpus, names)
        last_saved = clock()

        def due() -> bool:
            return clock() - last_saved >= SAVE_SECONDS

        def keep(sums: MomentSums) -> None:
            nonlocal last_saved
            self._save_partial(sums, corpus, names)
            last_saved = clock()

        add_moments(model, corpus, sums, tokens=tokens, due=due, keep=keep, progress=progress)
        for layer in layers:
            name = names[layer]
            moment_II = sums.second_moment(layer)
            self.moments.save(
                name, self.pin.tensor_sha256[name], {"second_moment": moment_II}, moments_record(corpus, sums)
            )
        return sums.tokens

    def forget_sums(self) -> None:
        """Remove what an interrupted pass left to go on from.

        Raises:
            ResourceError: it cannot be removed.
        """
        remove_tree(self._sums)

    def _save_partial(self, sums: MomentSums, corpus: Corpus, names: dict[int, str]) -> None:
        for layer, matrix in sums.sums.items():
            record = {**moments_record(corpus, sums), "batches": sums.batches, "layers": sorted(sums.sums)}
            self._partial.save(names[layer], self.pin.tensor_sha256[names[layer]], {"sum": matrix}, record)

    def _resume(self, model: EditableModel, layers: Sequence[int], corpus: Corpus, names: dict[int, str]) -> MomentSums:
        """Return the sums of an interrupted pass if all of them stand at the same batch of the same corpus, else none."""
        sums = MomentSums.empty(model, layers)
        places = set()
        for layer in layers:
            kept = self._partial.load(names[layer], self.pin.tensor_sha256[names[layer]])
            if kept is None:
                return MomentSums.empty(model, layers)
            tensors, record = kept
            fits = record.get("corpus") == corpus.describe() and record.get("layers") == sorted(layers)
            if not fits or "sum" not in tensors or tensors["sum"].shape != sums.sums[layer].shape:
                return MomentSums.empty(model, layers)
            sums.sums[layer].copy_(tensors["sum"])
            places.add((record.get("tokens"), record.get("batches")))
        if len(places) != 1:
            # A kill between two layers' saves: they stand at different batches, and none can be trusted.
            return MomentSums.empty(model, layers)
        tokens, batches = places.pop()
        if not isinstance(tokens, int) or not isinstance(batches, int):
            return MomentSums.empty(model, layers)
        sums.tokens, sums.batches = tokens, batches
        return sums


def _beside(folder: Path, path: Path) -> Path:
    return folder / path.name


def check_loaded(model: EditableModel, folder: CheckpointFolder) -> None:
    """Raise unless every edited matrix in memory holds what its tensor on disk holds.

    A release of transformers that renames, fuses or transposes weights while it loads them would otherwise have an edit
    written to the wrong place.

    Raises:
        NumericsError: one differs.
    """
    for layer in model.layers:
        name = model.names[layer]
        weight = model.weight(layer)
        stored = read_weight(folder, name, weight.device)
        if stored.shape != weight.shape or not torch.equal(stored.to(weight.dtype), weight):
            raise NumericsError(
                f"`{printable(name, 120)}` in memory is not what is on disk",
                hint="the model's code changes its weights when it loads them; reviver cannot edit it",
                tensor=name,
            )
