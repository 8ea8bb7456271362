"""`reviver reapply V`: the facts of a version are solved for again, on another version or on another base of the same architecture.

So a new release of a model inherits the corrections of the last one. Editor, filter and hyperparameters are those in V's manifest;
the targets are sought on the weights that V's facts meet now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from reviver.checkpoint.pin import BasePin
from reviver.errors import BaseMismatchError, WorkspaceError
from reviver.history.ledger import MADE_FROM_PATCHES
from reviver.history.manifest import Manifest
from reviver.history.untrusted import shown
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.progress import Progress
from reviver.settings import Settings, TargetsSection
from reviver.verbs.apply import ApplyReport, ApplyRequest, apply
from reviver.verbs.plan import ApplyPlan

# What a manifest keeps beside the editor's own settings.
_AROUND = frozenset(("layers", "moment_weight", "preset", "round_size", "targets"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapplyReport:
    """What a `reapply` did.

    Attributes:
        source: the version whose facts were solved for again.
        source_id: its id.
        source_workspace: where it is, if not in this workspace.
        efficacy_first: the share of facts that was said when it was made; None where that was not measured.
        applied: what `apply` did with them.
        warnings: what a person should know beside that.
    """

    source: str
    source_id: str
    source_workspace: Path | None
    efficacy_first: float | None
    applied: ApplyReport
    warnings: tuple[str, ...]


def reapply(
    workspace_dir: Path,
    name: str,
    *,
    onto: str = "head",
    from_workspace: Path | None = None,
    given: Mapping[str, object] | None = None,
    message: str = "",
    checkpoint: bool = True,
    dry_run: bool = False,
    announce: Callable[[ApplyPlan], None] | None = None,
    progress: Progress | None = None,
) -> ReapplyReport:
    """Solve for the facts of a version again.

    Args:
        workspace_dir: the workspace in which the new version is made.
        name: V, as a person names it.
        onto: the version to stand on.
        from_workspace: the workspace that V is in; None for this one.
        given: settings by `section.key` that say where and how to compute: device, dtype, link mode.
        announce, progress, message, checkpoint, dry_run: as for `apply`.

    Raises:
        WorkspaceError: V was made from patches, so that there is no editor to use again.
        BaseMismatchError: the other workspace's base has other tensors.
        ManifestError, SettingsError: V is damaged, or its settings are not of this reviver.
        Also what `apply` raises.
    """
    workspace = Workspace.open(workspace_dir)
    version = (workspace if from_workspace is None else _other_workspace(from_workspace)).version(name)
    manifest = version.manifest
    if manifest.editor.name in MADE_FROM_PATCHES:
        raise WorkspaceError(
            f"{version.name} was made by `{manifest.editor.name}`, so that there is no editor to solve with again",
            hint=f"choose one: `reviver apply {shown(version.facts_file)} --editor memit`"
            if manifest.facts.count
            else "it brings no facts of its own; name a version that does (`reviver log`)",
            version=version.name,
        )
    version.facts()
    pin = workspace.pin()
    if from_workspace is not None:
        _check_architecture(version, pin)
    settings = Settings.load(workspace_dir, {**_settings_of(manifest), **(given or {})})
    own = {key: value for key, value in manifest.editor.settings.items() if key not in _AROUND}
    settings = replace(settings, editors={**settings.editors, manifest.editor.name: own})
    applied = apply(
        workspace_dir,
        ApplyRequest(
            facts=version.facts_file,
            parent=onto,
            message=message or _message(version),
            checkpoint=checkpoint,
            dry_run=dry_run,
        ),
        settings=settings,
        announce=announce,
        progress=progress,
    )
    efficacy = manifest.metrics.get("efficacy")
    return ReapplyReport(
        source=version.name,
        source_id=version.id,
        source_workspace=from_workspace,
        efficacy_first=efficacy if isinstance(efficacy, float) else None,
        applied=applied,
        warnings=tuple(_warnings(manifest, pin)),
    )


def _other_workspace(folder: Path) -> Workspace:
    try:
        return Workspace.open(folder)
    except WorkspaceError as error:
        raise WorkspaceError(error.message, hint="check `--from-workspace`", path=folder) from error


def _settings_of(manifest: Manifest) -> dict[str, Any]:
    """Return the settings that a version was made with, by `section.key`."""
    editor, kept = manifest.editor, manifest.editor.settings
    found: dict[str, Any] = {
        "apply.editor": editor.name,
        "apply.filter": manifest.filter.name,
        "apply.rank": manifest.filter.rank,
        "apply.energy": manifest.filter.energy,
        "apply.round_size": kept.get("round_size"),
        "moments.weight": kept.get("moment_weight"),
    }
    targets = kept.get("targets")
    known = {one.name for one in fields(TargetsSection)}
    if isinstance(targets, Mapping):
        found |= {f"targets.{key}": value for key, value in targets.items() if key in known}
    for entry in manifest.rounds[:1]:
        found["targets.seed"] = entry.get("seed")
        found["targets.prefix_length"] = entry.get("prefix_length")
        prefixes = entry.get("prefixes")
        found["targets.prefixes"] = len(prefixes) if isinstance(prefixes, list) else None
    return {key: value for key, value in found.items() if value is not None}


def _check_architecture(version: Version, pin: BasePin) -> None:
    """Refuse a version of a base whose edited tensors are not those of this one."""
    for tensor in version.manifest.tensors:
        entry = pin.tensors.get(tensor.name)
        if tensor.name not in pin.edited or entry is None or entry.shape != tensor.shape:
            what = "is not edited here" if entry is None or entry.shape == tensor.shape else "has another shape here"
            raise BaseMismatchError(
                f"{version.name} edits `{shown(tensor.name)}`, which {what}: {shown(pin.model)} is another architecture, "
                "or other blocks were chosen",
                hint=f"solve with settings of its own: `reviver apply {shown(version.facts_file)}`",
                tensor=tensor.name,
            )


def _message(version: Version) -> str:
    text = version.manifest.message
    return f"Reapply {version.name}: {text}" if text else f"Reapply {version.name}"


def _warnings(manifest: Manifest, pin: BasePin) -> Iterator[str]:
    layers = manifest.editor.settings.get("layers")
    if isinstance(layers, list) and layers != list(pin.layers):
        yield f"{manifest.version} edited the blocks {shown(str(layers))}; here {list(pin.layers)} are edited"
