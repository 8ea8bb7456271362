"""`reviver apply`: a batch of facts becomes a filtered patch, a checkpoint and a manifest, as one new version or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.checkpoint.rewrite import WrittenCheckpoint, write_checkpoint
from reviver.editing.base import open_base, open_pinned, put_version, saved_preset, version_tensor
from reviver.editing.editors import Editor, get_editor
from reviver.editing.model import EditableModel, choose_device, choose_dtype
from reviver.editing.prefixes import write_prefixes
from reviver.editing.preparation import Preparation, check_loaded
from reviver.editing.presets import Preset
from reviver.editing.rounds import RoundSettings
from reviver.editing.session import FilterChoice, choose_ranks, open_layers, run_rounds, split_rounds
from reviver.editing.targets import TargetSettings
from reviver.errors import UsageError, WorkspaceError
from reviver.evaluation.outcomes import Summary, observe, summarize
from reviver.facts.checks import already_set, already_set_warning, shared_warning, subjects_shared
from reviver.facts.fact import facts_to_jsonl
from reviver.facts.reader import FactFile, read_facts, rejected_to_jsonl
from reviver.files import sha256_bytes, write_atomic
from reviver.history.chain import chain_deltas
from reviver.history.intent import remove_tree
from reviver.history.manifest import (
    Manifest,
    ManifestBase,
    ManifestEditor,
    ManifestFacts,
    ManifestFile,
    ManifestFilter,
    ManifestPatch,
    ManifestTensor,
)
from reviver.history.patch import write_patch
from reviver.history.results import FactResult, results_to_jsonl
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.text import plural
from reviver.verbs.entries import environment_of, metrics_of, result_of, round_entry, tensor_entry
from reviver.verbs.plan import ApplyPlan, check_disk, make_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyReport:
    """What an `apply` did.

    Attributes:
        version: the new version, now the head; None after a dry run.
        id: its id.
        plan: what was planned before it began.
        summary: shares over all facts, measured on the bytes that were written.
        tensors: per tensor: norms, captured fraction, similarity.
        results: per fact: probabilities and answers before and after.
        patch_bytes: size of the patch.
        checkpoint: where the checkpoint is, if one was written.
        rejected_file: where records that were set aside are kept.
        seconds: by phase.
        warnings: what a person should know.
    """

    version: str | None
    id: str | None
    plan: ApplyPlan
    summary: Summary | None = None
    tensors: tuple[ManifestTensor, ...] = ()
    results: tuple[FactResult, ...] = ()
    patch_bytes: int = 0
    checkpoint: Path | None = None
    rejected_file: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyRequest:
    """What a person asks of `apply`, beside the settings.

    Attributes:
        facts: the file of facts.
        parent: the version to stand on.
        message: what the version is for.
        on_conflict: what becomes of contradictions within the file.
        skip_invalid: set records that cannot be used aside.
        dry_run: stop after the plan.
        checkpoint: write a checkpoint; without, the patch alone is made.
    """

    facts: Path
    parent: str = "head"
    message: str = ""
    on_conflict: Literal["error", "last"] = "error"
    skip_invalid: bool = False
    dry_run: bool = False
    checkpoint: bool = True


def apply(
    workspace_dir: Path,
    request: ApplyRequest,
    *,
    settings: Settings,
    announce: Callable[[ApplyPlan], None] | None = None,
    progress: Progress | None = None,
) -> ApplyReport:
    """Solve for a batch of facts and commit the result as a new version.

    Args:
        workspace_dir: an initialised workspace.
        request: facts, parent, message.
        settings: editor, filter, rounds, device.
        announce: shown the plan before the work begins.
        progress: told about the long parts.

    Raises:
        FactsError: the facts cannot be used; nothing was loaded or written.
        BaseMismatchError: the base was touched since it was pinned.
        NumericsError: the update is not finite or beyond its limit; nothing was written.
        ResourceError: device, memory or disk are missing.
    """
    progress = progress or NullProgress()
    file = read_facts(request.facts, on_conflict=request.on_conflict, skip_invalid=request.skip_invalid)
    workspace = Workspace.open(workspace_dir)
    if request.dry_run:
        job = _Job(workspace, request, file, settings, progress)
        return ApplyReport(version=None, id=None, plan=job.plan(workspace.next_number()), warnings=tuple(job.warnings))
    with workspace.lock("apply"):
        job = _Job(workspace, request, file, settings, progress)
        plan = job.plan(workspace.next_number())
        if announce is not None:
            announce(plan)
        check_disk(plan)
        return job.run(plan)


class _Job:
    """One `apply` in the making."""

    def __init__(
        self, workspace: Workspace, request: ApplyRequest, file: FactFile, settings: Settings, progress: Progress
    ) -> None:
        self.workspace = workspace
        self.request = request
        self.file = file
        self.settings = settings
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.pin: BasePin = workspace.pin()
        if not self.pin.edited:
            raise WorkspaceError("this workspace is not prepared yet", hint="finish it with `reviver init MODEL`")
        self.folder: CheckpointFolder = open_base(self.pin)
        self.preset: Preset = saved_preset(self.pin, self.folder)
        self.device = choose_device(settings.apply.device)
        self.parent = workspace.resolve(request.parent)
        self.chain: list[Version] = workspace.chain(self.parent)
        self.editor: Editor = get_editor(settings.apply.editor)
        _check_runnable(self.editor)
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
        self.warnings: list[str] = [*file.warnings, *self._fact_warnings()]

    def _fact_warnings(self) -> Iterator[str]:
        earlier = [fact for version in self.chain for fact in version.facts()]
        texts = [already_set_warning(already_set(self.file.facts, earlier))]
        texts += [shared_warning(subjects_shared(facts)) for facts in self.rounds]
        if self.file.rejected:
            texts.append(f"{plural(len(self.file.rejected), 'record')} set aside")
        for name, choice in self.ranks.items():
            if choice.moved_from is not None:
                texts.append(
                    f"rank {choice.moved_from} of `{name}` falls into a cluster; k = {choice.rank} protects all of it"
                )
        return (text for text in texts if text is not None)

    def plan(self, number: int) -> ApplyPlan:
        """Return what is going to be done."""
        stored = self.folder.entry(self.pin.edited[0]).dtype
        return make_plan(
            root=self.workspace.root,
            version=f"v{number}",
            parent=self.parent,
            pin=self.pin,
            folder=self.folder,
            preset=self.preset,
            settings=self.settings,
            facts=self.file.facts,
            ranks=self.ranks,
            factored=self.editor.factored,
            checkpoint=self.request.checkpoint,
            device=self.device,
            dtype=choose_dtype(self.settings.apply.dtype, self.device, stored),
            warnings=self.warnings,
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.monotonic() - start, 3)

    def run(self, plan: ApplyPlan) -> ApplyReport:
        """Edit, write, measure, commit."""
        facts = self.file.facts
        deltas = chain_deltas(self.chain, self.pin)
        with self._timed("load"):
            model = open_pinned(self.pin, self.folder, self.settings, self.device)
            check_loaded(model, self.folder)
            put_version(model, self.folder, deltas)
            layers = open_layers(
                model, self.preparation, deltas, self.ranks, self.editor, moment_weight=self._moment_weight()
            )
        stored = {edited.name: self._stored(edited.name, deltas) for edited in layers}
        with self._timed("measure before"):
            before = observe(model, facts)
        with self._timed("edit"):
            prefixes = self._prefixes(model)
            round_settings = self._round_settings()
            records = run_rounds(model, layers, self.rounds, prefixes, round_settings, progress=self.progress)
        with self.workspace.draft("apply") as draft:
            changes = {edited.name: edited.total.delta() for edited in layers}
            chain = {name: [*deltas.get(name, ()), changes[name]] for name in changes}
            chain |= {name: list(kept) for name, kept in deltas.items() if name not in chain}
            with self._timed("write"):
                size, digest = write_patch(draft.edits_folder / "patch.safetensors", changes)
                written = write_checkpoint(
                    self.folder,
                    self.pin,
                    chain,
                    draft.checkpoint_folder if self.request.checkpoint else None,
                    link_mode=None if self.settings.apply.link_mode == "auto" else self.settings.apply.link_mode,
                    progress=self.progress,
                )
            with self._timed("measure after"):
                # What is measured is what ships: the bytes of the new version, not the sums they came from.
                results_DE = {edited.name: self._stored(edited.name, chain) for edited in layers}
                for edited in layers:
                    model.put_weight(edited.layer, results_DE[edited.name])
                after = observe(model, facts)
                tensors = [
                    tensor_entry(self.preparation, edited, stored[edited.name], results_DE[edited.name], written)
                    for edited in layers
                ]
            results = [result_of(fact, old, new) for fact, old, new in zip(facts, before, after, strict=True)]
            summary = summarize(before, after)
            lines = facts_to_jsonl(facts)
            write_atomic(draft.edits_folder / "facts.jsonl", lines)
            write_atomic(draft.edits_folder / "results.jsonl", results_to_jsonl(results))
            manifest = self._manifest(
                draft.name,
                facts=ManifestFacts(count=len(facts), sha256=sha256_bytes(lines)),
                patch=ManifestPatch(size=size, sha256=digest),
                settings=self._editor_record(round_settings),
                tensors=tensors,
                written=written,
                metrics=metrics_of(summary),
                rounds=[round_entry(record, prefixes, self.settings.targets.seed) for record in records],
                environment=environment_of(model),
            )
            write_atomic(draft.edits_folder / "manifest.json", manifest.to_json())
            rejected = self._keep_rejected(draft.name)
            draft.commit({"facts": len(facts), "message": self.request.message})
        self._drop_old_checkpoints(draft.name)
        self._warn_captured(tensors)
        return ApplyReport(
            version=draft.name,
            id=manifest.id,
            plan=plan,
            summary=summary,
            tensors=manifest.tensors,
            results=tuple(results),
            patch_bytes=size,
            checkpoint=self.workspace.checkpoint(draft.name) if self.request.checkpoint else None,
            rejected_file=rejected,
            seconds=dict(self.seconds),
            warnings=tuple(self.warnings),
        )

    def _manifest(
        self,
        name: str,
        *,
        facts: ManifestFacts,
        patch: ManifestPatch,
        settings: Mapping[str, object],
        tensors: Sequence[ManifestTensor],
        written: WrittenCheckpoint,
        metrics: Mapping[str, object],
        rounds: Sequence[Mapping[str, object]],
        environment: Mapping[str, object],
    ) -> Manifest:
        return Manifest.create(
            parent_id=self.workspace.version_id(self.parent),
            version=name,
            parent=self.parent,
            base=ManifestBase(model=self.pin.model, revision=self.pin.revision, fingerprint=self.pin.fingerprint),
            editor=ManifestEditor(
                name=self.editor.name, reference_url=self.editor.reference_url, settings=dict(settings)
            ),
            filter=self._manifest_filter(),
            facts=facts,
            patch=patch,
            tensors=tensors,
            files=[
                ManifestFile(path=one.path, size=one.size, sha256=one.sha256, changed=one.changed)
                for one in written.files
            ],
            message=self.request.message,
            metrics=metrics,
            rounds=rounds,
            environment=environment,
            timings=self.seconds,
        )

    def _moment_weight(self) -> float:
        return self.settings.memit.weight or self.preset.moment_weight

    def _prefixes(self, model: EditableModel) -> tuple[str, ...]:
        wanted = self.settings.targets
        return write_prefixes(model, count=wanted.prefixes, tokens=wanted.prefix_length, seed=wanted.seed)

    def _round_settings(self) -> RoundSettings:
        wanted, preset = self.settings.targets, self.preset

        def chosen(value: float | None, default: float) -> float:
            return default if value is None else value

        return RoundSettings(
            editor=self.editor,
            editor_settings=self.editor.settings({}),
            filter=self.filter.name,
            targets=TargetSettings(
                steps=wanted.steps or preset.steps,
                learning_rate=chosen(wanted.learning_rate, preset.learning_rate),
                clamp=chosen(wanted.clamp, preset.clamp),
                weight_decay=chosen(wanted.weight_decay, preset.weight_decay),
                kl=chosen(wanted.kl, preset.kl),
                stop_loss=wanted.stop_loss,
            ),
            maximum_relative_norm=self.settings.apply.maximum_relative_norm,
        )

    def _stored(self, name: str, chain: Mapping[str, Sequence[Delta]]) -> torch.Tensor:
        return version_tensor(self.folder, name, chain.get(name, ()), self.device)

    def _editor_record(self, round_settings: RoundSettings) -> dict[str, object]:
        return {
            **asdict(round_settings.editor_settings),
            "layers": list(self.pin.layers),
            "moment_weight": self._moment_weight(),
            "preset": self.preset.name,
            "round_size": self.settings.apply.round_size,
            "targets": {key: value for key, value in asdict(round_settings.targets).items() if key != "token_budget"},
        }

    def _manifest_filter(self) -> ManifestFilter:
        if self.filter.name == "none":
            return ManifestFilter(name="none", rank=None, energy=None)
        return ManifestFilter(name=self.filter.name, rank=self.filter.rank, energy=self.filter.energy)

    def _keep_rejected(self, name: str) -> Path | None:
        if not self.file.rejected:
            return None
        path = self.workspace.private / f"rejected-{name}.jsonl"
        write_atomic(path, rejected_to_jsonl(self.file.rejected))
        return path

    def _drop_old_checkpoints(self, newest: str) -> None:
        """Remove the checkpoints beyond the number that the settings keep, oldest first; any can be written again."""
        keep = self.settings.apply.keep_checkpoints
        if keep is None:
            return
        kept = [name for name in self.workspace.version_names() if self.workspace.checkpoint(name).is_dir()]
        for name in [name for name in kept if name != newest][: max(0, len(kept) - keep)]:
            # Under a leftover's name first: killed in between, it is cleaned up and not taken for a damaged checkpoint.
            doomed = self.workspace.checkpoints / f".{name}.partial"
            self.workspace.checkpoint(name).rename(doomed)
            remove_tree(doomed)

    def _warn_captured(self, tensors: Sequence[ManifestTensor]) -> None:
        limit = self.settings.apply.minimum_captured_fraction
        low = [one for one in tensors if one.captured_fraction is not None and one.captured_fraction < limit]
        if low:
            worst = min(low, key=lambda one: one.captured_fraction or 0.0)
            self.warnings.append(
                f"rounding to {worst.dtype} let only {worst.captured_fraction or 0.0:.0%} of the update of `{worst.name}` through; "
                "the patch itself is whole"
            )


def _check_runnable(editor: Editor) -> None:
    """Raise for an editor that needs more around it than the rounds give: without that its result would be another's.

    Raises:
        UsageError: it keeps a memory across versions, seeks targets on the base, or works on gradients.
    """
    sequential = editor.memory in ("total", "moments") or editor.begin(editor.settings({}), 1, 1) is not None
    if sequential or editor.targets_on != "current" or editor.signal != "targets":
        raise UsageError(
            f"`apply` does not run the editor `{editor.name}` yet", hint="use `--editor memit` or `--editor rect`"
        )
