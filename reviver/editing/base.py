"""The base of a workspace as editing sees it: opened again from its pin, with the choices that `init` made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin, touched
from reviver.checkpoint.rounding import tensor_chunks
from reviver.editing.architecture import Family, disk_name, find_family, inner_side, model_shape
from reviver.editing.corpus import Corpus, open_corpus
from reviver.editing.diagnostics import SIMILARITY_RANK
from reviver.editing.memory import check_memory, model_size, plan_memory
from reviver.editing.model import TORCH_DTYPES, EditableModel, choose_dtype, load_model
from reviver.editing.placement import Placement
from reviver.editing.presets import Preset, find_preset, with_layers
from reviver.editing.ranks import ALONE, Ranks
from reviver.errors import BaseMismatchError
from reviver.files import sha256_file
from reviver.settings import Settings
from reviver.text import printable


def open_base(pin: BasePin) -> CheckpointFolder:
    """Return the base's files, whose sizes and times must be those of the pin.

    Raises:
        BaseMismatchError: a file is gone or was touched since the base was pinned.
    """
    changed = touched(pin)
    if changed:
        shown = printable(changed[0].path, 100)
        raise BaseMismatchError(
            f"the base `{printable(pin.model, 100)}` was touched since it was pinned: `{shown}` ({changed[0].what})",
            hint=f"`reviver init {printable(pin.init_argument, 400)}` checks every byte again",
            path=changed[0].path,
        )
    return CheckpointFolder.open(Path(pin.folder))


def pinned_family(pin: BasePin, folder: CheckpointFolder) -> Family:
    """Return the family that `init` chose."""
    blocks, matrix = pin.extra.get("blocks"), pin.extra.get("matrix")
    family = find_family(
        folder.config,
        blocks=blocks if isinstance(blocks, str) else None,
        matrix=matrix if isinstance(matrix, str) else None,
    )
    if isinstance(pin.extra.get("transposed"), bool):
        family = replace(family, transposed=pin.extra["transposed"])
    return family


def chosen_family(folder: CheckpointFolder, settings: Settings) -> Family:
    """Return the family of a model, or the one that the settings' module paths describe.

    Raises:
        UnsupportedModelError: the architecture is not known, or its edited matrix is not where the family has it.
    """
    family = find_family(folder.config, blocks=settings.model.blocks, matrix=settings.model.matrix)
    if settings.model.blocks is None or settings.model.matrix is None:
        return family
    # A matrix of an unknown architecture is told by its sides: the output is as wide as the residual stream.
    hidden = model_shape(folder.config).hidden
    entry = folder.entry(disk_name(family, 0, folder.tensors))
    return replace(family, transposed=entry.shape[:1] != (hidden,) and entry.shape[1:] == (hidden,))


def model_preset(pin: BasePin, folder: CheckpointFolder) -> Preset:
    """Return the preset of the pinned model, with its own blocks."""
    hidden = model_shape(folder.config).hidden
    return find_preset(folder.config, inner_side(folder.entry(pin.edited[0]).shape, hidden))


def saved_preset(pin: BasePin, folder: CheckpointFolder) -> Preset:
    """Return the preset that `init` chose, with the blocks that it chose."""
    return with_layers(model_preset(pin, folder), pin.layers)


def open_model(
    folder: CheckpointFolder,
    family: Family,
    names: Mapping[int, str],
    settings: Settings,
    device: torch.device,
    *,
    placement: Placement | None = None,
    ranks: Ranks = ALONE,
) -> EditableModel:
    """Load a base for editing or asking.

    Args:
        folder: the base.
        family: its family.
        names: name on disk of the edited tensor of each edited block, ascending.
        settings: of which the dtype counts, and whether blocks may lie off the device.
        device: where it shall lie.
        placement: the blocks that shall not lie there, if that is planned already; without, as asking the model needs it.
        ranks: the processes that shall hold it.

    Raises:
        UnsupportedModelError, ResourceError: see `load_model`.
    """
    stored = folder.entry(next(iter(names.values()))).dtype
    dtype = choose_dtype(settings.apply.dtype, device, stored)
    if placement is None:
        size = model_size(folder, family, names, edit=False)
        plan = plan_memory(size, device, dtype, offload=settings.apply.offload, processes=ranks.size)
        check_memory(plan)
        placement = plan.placement
    return load_model(
        folder.root, family, list(names), names, device=device, dtype=dtype, placement=placement, ranks=ranks
    )


def pinned_names(pin: BasePin) -> dict[int, str]:
    """Return the name on disk of the edited tensor of each edited block, as `init` chose them."""
    return dict(zip(pin.layers, pin.edited, strict=True))


def open_pinned(
    pin: BasePin,
    folder: CheckpointFolder,
    settings: Settings,
    device: torch.device,
    *,
    placement: Placement | None = None,
    ranks: Ranks = ALONE,
) -> EditableModel:
    """Load the base of a workspace with the choices that `init` made; see `open_model`."""
    family, names = pinned_family(pin, folder), pinned_names(pin)
    return open_model(folder, family, names, settings, device, placement=placement, ranks=ranks)


def version_tensor(folder: CheckpointFolder, name: str, deltas: Sequence[Delta], device: torch.device) -> Tensor:
    """Return a tensor of a version, `[D, E]`, exactly as it is stored.

    Args:
        folder: the base.
        name: on disk.
        deltas: the version's chain for this tensor; none for the base's own values.
        device: where it shall lie.
    """
    entry = folder.entry(name)
    raw = bytearray().join(tensor_chunks(folder, name, deltas))
    return torch.frombuffer(raw, dtype=TORCH_DTYPES[entry.dtype]).view(entry.shape).to(device)


def put_version(model: EditableModel, folder: CheckpointFolder, deltas: Mapping[str, Sequence[Delta]]) -> None:
    """Put the exact values of a version into a model that holds the base, or a version that changed no other tensors.

    Args:
        model: its weights are replaced.
        folder: the base.
        deltas: of the version's chain, by tensor; an empty chain of a tensor puts the base's values back.

    Raises:
        UnsupportedModelError: a tensor is none of the model's parameters.
        BaseMismatchError: a delta does not fit the base.
    """
    layers = {name: layer for layer, name in model.names.items()}
    for name, chain in deltas.items():
        values_DE = version_tensor(folder, name, chain, model.device)
        if name in layers:
            model.put_weight(layers[name], values_DE)
        else:
            model.put_tensor(name, values_DE)


def basis_width(rank: int, shape: Sequence[int]) -> int:
    """Return how many directions a side to keep for a protected rank.

    Some more, so that a gap can be looked for behind it, and as many as drift is measured at.
    """
    return min(min(shape), max(rank + max(8, rank // 4), SIMILARITY_RANK))


def corpus_of(settings: Settings) -> Corpus:
    """Return the corpus that the settings name."""
    name = settings.moments.corpus
    sha256 = sha256_file(Path(name)) if name is not None and Path(name).is_file() else None
    return open_corpus(name, seed=settings.moments.seed, length=settings.moments.length, sha256=sha256)
