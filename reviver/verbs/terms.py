"""What an `apply` works with: base, parent, editor, filter, ranks and rounds, settled before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches

from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.editing.base import open_base, saved_preset
from reviver.editing.editors import Editor, editor_names, get_editor
from reviver.editing.model import choose_device, choose_dtype
from reviver.editing.preparation import Preparation
from reviver.editing.presets import Preset
from reviver.editing.ranks import Ranks
from reviver.editing.rounds import RoundSettings
from reviver.editing.session import FilterChoice, choose_ranks, split_rounds
from reviver.editing.targets import TargetSettings, target_settings
from reviver.errors import SettingsError, WorkspaceError
from reviver.facts.checks import already_set, already_set_warning, shared_warning, subjects_shared
from reviver.facts.fact import facts_to_jsonl
from reviver.facts.reader import FactFile
from reviver.files import canonical_json, sha256_bytes
from reviver.history.manifest import ManifestEditor, ManifestFilter
from reviver.history.tracing import known_facts_among
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.text import plural, printable
from reviver.verbs.plan import ApplyPlan, make_plan


class Terms:
    """What one `apply` works with.

    Args:
        workspace: an initialised workspace.
        file: the facts.
        parent: the version to stand on, as a person names it.
        settings: editor, filter, rounds, device.

    Attributes:
        workspace, file, settings: as given.
        pin, folder, preset, preparation: the base and what `init` made of it.
        device: where the model is to be.
        parent: the version's name.
        chain: its versions, oldest first.
        editor, editor_settings: the editor; what it is told.
        filter, ranks: what is protected; by tensor, None without a filter.
        rounds: the facts, those of a round together.

    Raises:
        WorkspaceError: the workspace is not prepared.
        VersionNotFoundError, ManifestError, BaseMismatchError: there is no such parent, or it or the base is damaged.
        UsageError, EditorError, SettingsError: there is no such editor, or its settings are wrong.
    """

    def __init__(self, workspace: Workspace, file: FactFile, parent: str, settings: Settings) -> None:
        self.workspace = workspace
        self.file = file
        self.settings = settings
        self.pin: BasePin = workspace.pin()
        if not self.pin.edited:
            raise WorkspaceError("this workspace is not prepared yet", hint="finish it with `reviver init MODEL`")
        _check_layers(settings, self.pin)
        self.folder: CheckpointFolder = open_base(self.pin)
        self.preset: Preset = saved_preset(self.pin, self.folder)
        self.device = choose_device(settings.apply.device)
        self.parent = workspace.resolve(parent)
        self.chain: list[Version] = workspace.chain(self.parent)
        self.editor: Editor = get_editor(settings.apply.editor)
        self.editor_settings = self.preset.editor_settings(self.editor, settings.editors.get(self.editor.name, {}))
        self.preparation = Preparation(workspace, self.pin, self.folder)
        if self.editor.needs_second_moment and self.preparation.missing_moments():
            raise WorkspaceError("second moments are missing", hint="finish the preparation with `reviver init MODEL`")
        energy = settings.apply.energy
        self.filter = FilterChoice(
            name=settings.apply.filter,
            rank=None if energy is not None else settings.apply.rank or self.preset.rank,
            energy=energy,
        )
        self.ranks = choose_ranks(self.preparation, self.filter, self.device)
        self.rounds = split_rounds(file.facts, settings.apply.round_size)

    def warnings(self) -> list[str]:
        """Return what a person should know of the facts and ranks, a line each."""
        # What a version published without its facts holds is not known, and nothing here depends on it.
        facts = {version.name: () if version.withheld else version.facts() for version in self.chain}
        in_force = [known.fact for known in known_facts_among(self.chain, facts).values()]
        texts = [already_set_warning(already_set(self.file.facts, in_force))]
        texts += [shared_warning(subjects_shared(facts)) for facts in self.rounds]
        if self.file.rejected:
            texts.append(f"{plural(len(self.file.rejected), 'record')} set aside")
        for name, choice in self.ranks.items():
            if choice.moved_from is not None:
                texts.append(
                    f"rank {choice.moved_from} of `{name}` falls into a cluster; k = {choice.rank} protects all of it"
                )
        texts += [_no_editor(name) for name in self.settings.editors if name not in editor_names()]
        return [*self.file.warnings, *(text for text in texts if text is not None)]

    def plan(self, *, checkpoint: bool, processes: Ranks) -> ApplyPlan:
        """Return what is going to be done.

        Args:
            checkpoint: whether one is written.
            processes: those of this run.
        """
        stored = self.folder.entry(self.pin.edited[0]).dtype
        return make_plan(
            root=self.workspace.root,
            version=f"v{self.workspace.next_number()}",
            parent=self.parent,
            pin=self.pin,
            folder=self.folder,
            preset=self.preset,
            settings=self.settings,
            facts=self.file.facts,
            ranks=self.ranks,
            editor=self.editor,
            checkpoint=checkpoint,
            device=self.device,
            dtype=choose_dtype(self.settings.apply.dtype, self.device, stored),
            processes=processes.size,
            warnings=self.warnings(),
        )

    @property
    def moment_weight(self) -> float:
        """λ: what second moments weigh."""
        return self.settings.moments.weight or self.preset.moment_weight

    def targets(self) -> TargetSettings:
        """Return how targets are sought: the settings, and where they are silent the preset."""
        return target_settings(self.settings.targets, self.preset)

    def round_settings(self) -> RoundSettings:
        """Return how every round is done."""
        return RoundSettings(
            editor=self.editor,
            editor_settings=self.editor_settings,
            filter=self.filter.name,
            targets=self.targets(),
            maximum_relative_norm=self.settings.apply.maximum_relative_norm,
        )

    def manifest_editor(self) -> ManifestEditor:
        """Return the editor with all its settings, as the manifest keeps it."""
        return ManifestEditor(
            name=self.editor.name,
            reference_url=self.editor.reference_url,
            settings={
                **asdict(self.editor_settings),  # type: ignore[call-overload]
                "layers": list(self.pin.layers),
                "moment_weight": self.moment_weight,
                "preset": self.preset.name,
                "round_size": self.settings.apply.round_size,
                "targets": {key: value for key, value in asdict(self.targets()).items() if key != "token_budget"},
            },
        )

    def manifest_filter(self) -> ManifestFilter:
        """Return the filter as the manifest keeps it."""
        if self.filter.name == "none":
            return ManifestFilter(name="none", rank=None, energy=None)
        return ManifestFilter(name=self.filter.name, rank=self.filter.rank, energy=self.filter.energy)

    def fingerprint(self, prefixes: Sequence[str], environment: object, processes: int) -> str:
        """Return a hash of everything that decides what the rounds give, on a CPU to the bit.

        On a GPU the memory that is free decides how many facts are computed at once, and with it the last bits.

        Args:
            prefixes: the contexts of the facts.
            environment: of the model (`environment_of`).
            processes: how many share the work.
        """
        decides = {
            "parent": self.workspace.version_id(self.parent),
            "facts": sha256_bytes(facts_to_jsonl(self.file.facts)),
            "editor": self.editor.name,
            "settings": self.manifest_editor().settings,
            "filter": self.filter.name,
            "ranks": {name: choice.rank for name, choice in self.ranks.items()},
            "moments": [
                self.preparation.moments.record(name, self.pin.tensor_sha256[name]) for name in self.pin.edited
            ],
            "prefixes": list(prefixes),
            "environment": environment,
            "processes": processes,
        }
        return sha256_bytes(canonical_json(decides))


def _no_editor(name: str) -> str:
    """Return the words for settings of an editor that is not there: another machine may have it, so they are no error."""
    near = get_close_matches(name, editor_names(), n=1)
    meant = f"; did you mean `{near[0]}`?" if near else ""
    return f"[editors.{printable(name, 40)}] sets something for an editor that is not installed{meant}"


def _check_layers(settings: Settings, pin: BasePin) -> None:
    """Refuse blocks that are asked for and not prepared: an edit of others would pass for what was wanted."""
    if settings.model.layers in (None, pin.layers):
        return
    raise SettingsError(
        f"{settings.source('model.layers')} names other blocks than the workspace is prepared for: "
        f"{', '.join(map(str, pin.layers))}",
        hint=f"prepare them with `reviver init {pin.init_argument}`, or take the setting away",
    )
