"""`reviver init`: pin a base and compute what editing it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin, pin_folder, touched
from reviver.editing.architecture import Family, disk_name, inner_side, model_shape
from reviver.editing.base import basis_width, chosen_family, corpus_of, open_model, saved_preset
from reviver.editing.bases import prepare_bases
from reviver.editing.corpus import Corpus
from reviver.editing.memory import away_note, check_memory, model_size, plan_memory
from reviver.editing.model import EditableModel, choose_device, choose_dtype
from reviver.editing.preparation import Preparation, check_loaded
from reviver.editing.presets import Preset, find_preset, with_layers
from reviver.editing.ranks import ALONE, Ranks
from reviver.errors import BaseMismatchError, CheckpointError, UsageError, WorkspaceError
from reviver.files import write_atomic
from reviver.history.clone import take_up_history
from reviver.history.workspace import Workspace
from reviver.hub.source import Source, resolve_source
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.text import plural, printable
from reviver.verbs.doubts import doubts


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTensor:
    """One tensor that is ready to be edited.

    Attributes:
        name: on disk.
        layer: number of its block.
        shard: the file that holds it.
        dtype: as stored.
        shape: as stored.
        basis_width: directions a side of its spectral basis.
    """

    name: str
    layer: int
    shard: str
    dtype: str
    shape: tuple[int, ...]
    basis_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InitReport:
    """What `init` found and did.

    Attributes:
        workspace: its folder.
        model: the Hub id or the folder's name.
        revision: the commit on the Hub, if it came from there.
        fingerprint: of the base.
        family: the architecture.
        preset: the name of the hyperparameters; `derived` where none was published.
        protected_rank: the protected rank that `apply` will use by default.
        tensors: what can be edited.
        moment_tokens: tokens that this run added to the second moments; 0 where they were complete.
        did: what this run had to do, in order; empty where everything was there.
        warnings: what a person should know.
    """

    workspace: Path
    model: str
    revision: str | None
    fingerprint: str
    family: str
    preset: str
    protected_rank: int
    tensors: tuple[PreparedTensor, ...]
    moment_tokens: int
    did: tuple[str, ...]
    warnings: tuple[str, ...]


def init(
    workspace_dir: Path,
    model: str,
    *,
    settings: Settings,
    progress: Progress | None = None,
    processes: Ranks = ALONE,
) -> InitReport:
    """Pin a base and compute its second moments and spectral bases; goes on where it was killed, does nothing when done.

    Args:
        workspace_dir: made if it is not there.
        model: a local folder or a Hub id, with `@revision` if wanted.
        settings: layers, corpus, device, dtype.
        progress: told about the long parts.
        processes: those of this run; the others follow this one.

    Raises:
        ReviverError: see the errors of `resolve_source`, `CheckpointFolder`, `find_family`, `load_model`.
    """
    progress = progress or NullProgress()
    source = resolve_source(model, progress=progress)
    folder = CheckpointFolder.open(source.folder)
    # The choices are made before the workspace exists: a model that cannot be edited leaves nothing behind.
    family, preset, names = _choose(folder, settings, _kept_layers(workspace_dir, folder))
    if workspace_dir.resolve().is_relative_to(folder.root.resolve()):
        raise UsageError(
            f"the workspace `{printable(str(workspace_dir), 200)}` lies in the model's own folder, which is never written",
            hint="make it elsewhere: `reviver init MODEL DIR`",
        )
    device = choose_device(settings.apply.device)
    corpus = corpus_of(settings)
    loader = _Loader(folder, family, names, settings, device, processes)
    if not Workspace(workspace_dir).base_file.exists():
        loader.model()
    workspace = Workspace.create(workspace_dir)
    did: list[str] = []
    with workspace.lock("init"):
        pin = _pinned(workspace, source, folder, did, progress)
        if pin.layers != preset.layers or pin.edited != tuple(names.values()) or pin.family != family.name:
            pin = replace(
                pin,
                family=family.name,
                preset=preset.name,
                layers=preset.layers,
                edited=tuple(names.values()),
                extra={
                    "blocks": settings.model.blocks,
                    "matrix": settings.model.matrix,
                    "transposed": family.transposed,
                },
            )
            workspace.save_pin(pin)
        if not workspace.settings_file.exists():
            write_atomic(workspace.settings_file, Settings.default_toml().encode())
        tokens = _compute(workspace, pin, loader, corpus, did, progress)
        if did:
            workspace.record("init", {"model": pin.model, "did": did})
    preparation = Preparation(workspace, pin, folder)
    warnings = (*([] if loader.note is None else [loader.note]), *doubts(preparation, corpus, settings))
    return _report(workspace.root, preparation, tokens, did, warnings)


def _kept_layers(workspace_dir: Path, folder: CheckpointFolder) -> tuple[int, ...] | None:
    """Return the blocks that the workspace was prepared for, if it was: they stay until others are asked for."""
    workspace = Workspace(workspace_dir)
    if not workspace.base_file.exists():
        return None
    pin = workspace.pin()
    # A pin of another model is refused later, in words of its own.
    return pin.layers if pin.edited and folder.tensors.keys() >= set(pin.edited) else None


def _choose(
    folder: CheckpointFolder, settings: Settings, kept: tuple[int, ...] | None
) -> tuple[Family, Preset, dict[int, str]]:
    """Return the family, the preset with the blocks to edit, and the name on disk of each edited tensor."""
    family = chosen_family(folder, settings)
    shape = model_shape(folder.config)
    probe = folder.entry(disk_name(family, 0, folder.tensors))
    layers = settings.model.layers or kept
    preset = with_layers(find_preset(folder.config, inner_side(probe.shape, shape.hidden)), layers)
    beyond = [layer for layer in preset.layers if not 0 <= layer < shape.layers]
    if beyond:
        raise UsageError(
            f"the model has no block {beyond[0]}",
            hint=f"choose among its {shape.layers} blocks, 0 to {shape.layers - 1}",
        )
    names = {layer: disk_name(family, layer, folder.tensors) for layer in preset.layers}
    for name in names.values():
        folder.check_editable(name)
    return family, preset, names


def _pinned(
    workspace: Workspace, source: Source, folder: CheckpointFolder, did: list[str], progress: Progress
) -> BasePin:
    """Return the workspace's pin, made now if there is none yet.

    Raises:
        WorkspaceError: the workspace is pinned to another base.
        BaseMismatchError: the pinned base was changed since, or the history that is here was made on another.
    """
    model = source.model or folder.root.name
    if not workspace.base_file.exists():
        pin = pin_folder(folder, source=source.kind, model=model, revision=source.revision, progress=progress)
        _check_against_hub(pin, source)
        head = take_up_history(workspace, pin.fingerprint)
        workspace.save_pin(pin)
        did.append("pinned the base")
        if head is not None:
            did.append(f"took up the history that was here: the head is {head}")
        return pin
    pin = workspace.pin()
    if (pin.source, pin.model, pin.revision) != (source.kind, model, source.revision):
        raise WorkspaceError(
            f"this workspace is pinned to `{printable(pin.model, 100)}`"
            + (f" at {pin.revision[:12]}" if pin.revision else ""),
            hint="make another workspace: `reviver init MODEL DIR`",
        )
    if Path(pin.folder) != folder.root or touched(pin):
        fresh = pin_folder(folder, source=source.kind, model=model, revision=source.revision, progress=progress)
        if fresh.fingerprint != pin.fingerprint:
            raise BaseMismatchError(
                f"the base `{printable(pin.model, 100)}` is not what it was when it was pinned",
                hint="put the old files back, or make another workspace: `reviver init MODEL DIR`",
            )
        pin = replace(
            fresh, family=pin.family, preset=pin.preset, layers=pin.layers, edited=pin.edited, extra=pin.extra
        )
        workspace.save_pin(pin)
        did.append("found the base again, unchanged")
    return pin


def _check_against_hub(pin: BasePin, source: Source) -> None:
    """Raise where a file of the cache is not what the Hub says it is."""
    for file in pin.files:
        expected = source.expected_sha256.get(file.path)
        if expected is not None and expected != file.sha256:
            raise CheckpointError(
                f"`{printable(file.path, 100)}` in the Hub's cache is damaged",
                hint="delete the model from the cache with `hf cache rm`, and run the command again",
                path=file.path,
            )


@dataclass(slots=True)
class _Loader:
    """The base in memory, loaded when it is first needed: a prepared workspace needs it no more."""

    folder: CheckpointFolder
    family: Family
    names: dict[int, str]
    settings: Settings
    device: torch.device
    processes: Ranks
    _model: EditableModel | None = None
    note: str | None = None

    def model(self) -> EditableModel:
        """Return the model, whose edited matrices are those on disk."""
        if self._model is None:
            names = list(self.names.values())
            dtype = choose_dtype(self.settings.apply.dtype, self.device, self.folder.entry(names[0]).dtype)
            plan = plan_memory(
                model_size(self.folder, self.family, self.names, moments=True),
                self.device,
                dtype,
                offload=self.settings.apply.offload,
                processes=self.processes.size,
            )
            check_memory(plan)
            self.note = away_note(plan)
            self._model = open_model(
                self.folder,
                self.family,
                self.names,
                self.settings,
                self.device,
                placement=plan.placement,
                ranks=self.processes,
            )
            check_loaded(self._model, self.folder)
        return self._model


def _compute(
    workspace: Workspace, pin: BasePin, loader: _Loader, corpus: Corpus, did: list[str], progress: Progress
) -> int:
    """Compute what is missing; return the tokens that the second moments took."""
    settings, folder = loader.settings, loader.folder
    preparation = Preparation(workspace, pin, folder)
    preset = saved_preset(pin, folder)
    rank = settings.apply.rank or preset.rank
    widths = {name: basis_width(rank, folder.entry(name).shape) for name in pin.edited}
    tokens = 0
    missing = preparation.missing_moments()
    if missing:
        model = loader.model()
        wanted = settings.moments.tokens or 10 * model.inner_width(missing[0])
        tokens = preparation.compute_moments(model, missing, corpus, tokens=wanted, progress=progress)
        did.append(f"computed {plural(len(missing), 'second moment')}")
    # Also where a former run was killed before it came to this.
    preparation.forget_sums()
    computed = prepare_bases(preparation, widths, loader.device, ranks=loader.processes, progress=progress)
    if computed:
        did.append(f"computed {plural(len(computed), 'spectral basis', 'spectral bases')}")
    return tokens


def _report(
    root: Path, preparation: Preparation, tokens: int, did: Sequence[str], warnings: tuple[str, ...]
) -> InitReport:
    pin, folder = preparation.pin, preparation.folder
    preset = saved_preset(pin, folder)
    return InitReport(
        workspace=root,
        model=pin.model,
        revision=pin.revision,
        fingerprint=pin.fingerprint,
        family=pin.family or "",
        preset=preset.name,
        protected_rank=preset.rank,
        tensors=tuple(
            PreparedTensor(
                name=name,
                layer=layer,
                shard=folder.entry(name).shard,
                dtype=folder.entry(name).dtype,
                shape=folder.entry(name).shape,
                basis_width=preparation.basis_width(name),
            )
            for layer, name in zip(pin.layers, pin.edited, strict=True)
        ),
        moment_tokens=tokens,
        did=tuple(did),
        warnings=warnings,
    )
