"""`reviver apply`: a batch of facts becomes a filtered patch, a checkpoint and a manifest, as one new version or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.checkpoint.rewrite import Chain, WrittenCheckpoint
from reviver.editing.base import open_base, open_pinned, put_version, saved_preset, version_tensor
from reviver.editing.editors import Editor, get_editor
from reviver.editing.memory import check_memory
from reviver.editing.model import EditableModel, choose_device, choose_dtype
from reviver.editing.prefixes import write_prefixes
from reviver.editing.preparation import Preparation, check_loaded
from reviver.editing.presets import Preset
from reviver.editing.ranks import ALONE, Ranks
from reviver.editing.recall import Recall
from reviver.editing.resume import FinishedRounds
from reviver.editing.rounds import RoundSettings
from reviver.editing.session import FilterChoice, choose_ranks, open_layers, run_rounds, split_rounds
from reviver.editing.targets import TargetSettings
from reviver.errors import WorkspaceError
from reviver.evaluation.gates import GateOutcome
from reviver.evaluation.outcomes import Summary, observe, summarize
from reviver.facts.checks import already_set, already_set_warning, shared_warning, subjects_shared
from reviver.facts.fact import facts_to_jsonl
from reviver.facts.reader import FactFile, read_facts, rejected_to_jsonl
from reviver.files import canonical_json, sha256_bytes, write_atomic
from reviver.history.chain import chain_deltas
from reviver.history.manifest import ManifestEditor, ManifestFilter, ManifestTensor
from reviver.history.results import FactResult
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.text import plural
from reviver.verbs.commit import CheckpointChoice, Measured, NewVersion, Timer, commit_version
from reviver.verbs.entries import environment_of, metrics_of, result_of, round_entry, tensor_entry
from reviver.verbs.gate import GateKeeper
from reviver.verbs.plan import ApplyPlan, check_disk, check_share, make_plan


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
        gates: the gates that the version met, with what was measured.
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
    gates: tuple[GateOutcome, ...] = ()
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
        gate: what the version has to meet, such as `es>=0.9,perplexity<=1.05x`.
        gate_text: a file of ordinary text for the gate on perplexity; without, the base writes its own.
    """

    facts: Path
    parent: str = "head"
    message: str = ""
    on_conflict: Literal["error", "last"] = "error"
    skip_invalid: bool = False
    dry_run: bool = False
    checkpoint: bool = True
    gate: str | None = None
    gate_text: Path | None = None


def apply(
    workspace_dir: Path,
    request: ApplyRequest,
    *,
    settings: Settings,
    announce: Callable[[ApplyPlan], None] | None = None,
    progress: Progress | None = None,
    processes: Ranks = ALONE,
) -> ApplyReport:
    """Solve for a batch of facts and commit the result as a new version.

    Args:
        workspace_dir: an initialised workspace.
        request: facts, parent, message.
        settings: editor, filter, rounds, device.
        announce: shown the plan before the work begins.
        progress: told about the long parts.
        processes: those of this run; the others follow this one.

    Raises:
        UsageError: the gate does not parse, or there are more processes than facts; nothing was loaded or written.
        FactsError: the facts cannot be used; nothing was loaded or written.
        CheckFailedError: the version misses a gate and was not made; what was measured is kept.
        BaseMismatchError: the base was touched since it was pinned.
        NumericsError: the update is not finite or beyond its limit; nothing was written.
        ResourceError: device, memory or disk are missing.
    """
    progress = progress or NullProgress()
    gate = GateKeeper(request.gate, request.gate_text)
    file = read_facts(request.facts, on_conflict=request.on_conflict, skip_invalid=request.skip_invalid)
    check_share(processes, file.facts)
    workspace = Workspace.open(workspace_dir)
    if request.dry_run:
        job = _Job(workspace, request, file, gate, settings, progress)
        plan = job.plan(workspace.next_number(), processes)
        return ApplyReport(version=None, id=None, plan=plan, warnings=tuple(job.warnings))
    with workspace.lock("apply"):
        job = _Job(workspace, request, file, gate, settings, progress)
        plan = job.plan(workspace.next_number(), processes)
        if announce is not None:
            announce(plan)
        check_disk(plan)
        check_memory(plan.memory)
        return job.run(plan, processes)


class _Job:
    """One `apply` in the making."""

    def __init__(
        self,
        workspace: Workspace,
        request: ApplyRequest,
        file: FactFile,
        gate: GateKeeper,
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.workspace = workspace
        self.request = request
        self.file = file
        self.gate = gate
        self.settings = settings
        self.progress = progress
        self.timer = Timer()
        self.pin: BasePin = workspace.pin()
        if not self.pin.edited:
            raise WorkspaceError("this workspace is not prepared yet", hint="finish it with `reviver init MODEL`")
        self.folder: CheckpointFolder = open_base(self.pin)
        self.preset: Preset = saved_preset(self.pin, self.folder)
        self.device = choose_device(settings.apply.device)
        self.parent = workspace.resolve(request.parent)
        self.chain: list[Version] = workspace.chain(self.parent)
        self.editor: Editor = get_editor(settings.apply.editor)
        self.editor_settings = self._chosen_editor_settings()
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

    def plan(self, number: int, processes: Ranks) -> ApplyPlan:
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
            editor=self.editor,
            checkpoint=self.request.checkpoint,
            device=self.device,
            dtype=choose_dtype(self.settings.apply.dtype, self.device, stored),
            processes=processes.size,
            warnings=self.warnings,
        )

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return self.timer.phase(phase)

    def run(self, plan: ApplyPlan, processes: Ranks) -> ApplyReport:
        """Edit, write, measure, commit."""
        facts = self.file.facts
        deltas = chain_deltas(self.chain, self.pin)
        with self._timed("load"):
            model = open_pinned(
                self.pin, self.folder, self.settings, self.device, placement=plan.memory.placement, ranks=processes
            )
            check_loaded(model, self.folder)
            # The base writes them, so that the same facts get the same contexts whatever was edited before.
            prefixes = self._prefixes(model)
            self.gate.see_base(model, facts, self.chain)
            put_version(model, self.folder, deltas)
            layers = open_layers(
                model, self.preparation, deltas, self.ranks, self.editor, moment_weight=self._moment_weight()
            )
            recall = Recall(self.workspace, self.preparation, self.editor, self.editor_settings)
            recall.into(layers, self.chain, model)
        # In the machine's memory: the device has better use for its own.
        stored = {edited.name: self._stored(edited.name, deltas).cpu() for edited in layers}
        with self._timed("measure before"):
            before = observe(model, facts)
            self.gate.see_parent(model, self.folder, self.pin.edited, deltas)
        with self._timed("edit"):
            round_settings = self._round_settings()
            finished = FinishedRounds(
                self.workspace.rounds, self._job_fingerprint(model, prefixes, round_settings), self.editor
            )
            records = run_rounds(
                model, layers, self.rounds, prefixes, round_settings, finished=finished, progress=self.progress
            )
        new = NewVersion(
            verb="apply",
            parent=self.parent,
            deltas=deltas,
            changes={edited.name: edited.total.delta() for edited in layers},
            facts=facts,
            editor=ManifestEditor(
                name=self.editor.name,
                reference_url=self.editor.reference_url,
                settings=self._editor_record(round_settings),
            ),
            filter=self._manifest_filter(),
            rounds=[round_entry(record, prefixes, self.settings.targets.seed) for record in records],
            message=self.request.message,
        )

        def measure(chain: Chain, written: WrittenCheckpoint) -> Measured:
            with self._timed("measure after"):
                # What is measured is what ships: the bytes of the new version, not the sums they came from.
                results_DE = {edited.name: self._stored(edited.name, chain) for edited in layers}
                for edited in layers:
                    model.put_weight(edited.layer, results_DE[edited.name])
                after = observe(model, facts)
                tensors = [
                    tensor_entry(
                        self.preparation,
                        edited,
                        stored[edited.name].to(self.device),
                        results_DE[edited.name],
                        written,
                    )
                    for edited in layers
                ]
                outcomes = self.gate.judge(model, self.folder, self.pin.edited, chain)
            measured = Measured(
                tensors=tensors,
                results=[result_of(fact, old, new) for fact, old, new in zip(facts, before, after, strict=True)],
                summary=(summary := summarize(before, after)),
                metrics=metrics_of(summary) | ({"gates": [asdict(one) for one in outcomes]} if outcomes else {}),
                environment=environment_of(model),
            )
            self.gate.refuse(self.workspace, plan.version, new, measured)
            self._keep_rejected(plan.version)
            return measured

        committed = commit_version(
            self.workspace,
            self.pin,
            self.folder,
            new,
            measure,
            checkpoints=CheckpointChoice(
                write=self.request.checkpoint,
                link_mode=self.settings.apply.link_mode,
                keep=self.settings.apply.keep_checkpoints,
            ),
            timer=self.timer,
            progress=self.progress,
            before_commit=lambda manifest: recall.save(manifest.id, layers),
        )
        finished.clear()
        self._warn_captured(committed.manifest.tensors)
        return ApplyReport(
            version=committed.manifest.version,
            id=committed.manifest.id,
            plan=plan,
            summary=committed.measured.summary,
            tensors=committed.manifest.tensors,
            results=tuple(committed.measured.results),
            patch_bytes=committed.patch_bytes,
            checkpoint=committed.checkpoint,
            rejected_file=self._rejected_file(plan.version),
            gates=self.gate.outcomes,
            seconds=dict(self.timer.seconds),
            warnings=tuple(self.warnings),
        )

    def _job_fingerprint(self, model: EditableModel, prefixes: Sequence[str], round_settings: RoundSettings) -> str:
        """Return a hash of everything that decides what the rounds give, to the bit."""
        decides = {
            "parent": self.workspace.version_id(self.parent),
            "facts": sha256_bytes(facts_to_jsonl(self.file.facts)),
            "editor": self.editor.name,
            "settings": self._editor_record(round_settings),
            "filter": self.filter.name,
            "ranks": {name: choice.rank for name, choice in self.ranks.items()},
            "moments": [
                self.preparation.moments.record(name, self.pin.tensor_sha256[name]) for name in self.pin.edited
            ],
            "prefixes": list(prefixes),
            "environment": environment_of(model),
        }
        return sha256_bytes(canonical_json(decides))

    def _chosen_editor_settings(self) -> object:
        """Return the editor's settings: the model's preset, and over it what `reviver.toml` tells this editor."""
        name = self.editor.name
        return self.editor.settings({**self.preset.editors.get(name, {}), **self.settings.editors.get(name, {})})

    def _moment_weight(self) -> float:
        return self.settings.moments.weight or self.preset.moment_weight

    def _prefixes(self, model: EditableModel) -> tuple[str, ...]:
        wanted = self.settings.targets
        return write_prefixes(model, count=wanted.prefixes, tokens=wanted.prefix_length, seed=wanted.seed)

    def _round_settings(self) -> RoundSettings:
        wanted, preset = self.settings.targets, self.preset

        def chosen(value: float | None, default: float) -> float:
            return default if value is None else value

        return RoundSettings(
            editor=self.editor,
            editor_settings=self.editor_settings,
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

    def _rejected_file(self, name: str) -> Path | None:
        return self.workspace.private / f"rejected-{name}.jsonl" if self.file.rejected else None

    def _keep_rejected(self, name: str) -> None:
        path = self._rejected_file(name)
        if path is not None:
            write_atomic(path, rejected_to_jsonl(self.file.rejected))

    def _warn_captured(self, tensors: Sequence[ManifestTensor]) -> None:
        limit = self.settings.apply.minimum_captured_fraction
        low = [one for one in tensors if one.captured_fraction is not None and one.captured_fraction < limit]
        if low:
            worst = min(low, key=lambda one: one.captured_fraction or 0.0)
            self.warnings.append(
                f"rounding to {worst.dtype} let only {worst.captured_fraction or 0.0:.0%} of the update of `{worst.name}` through; "
                "the patch itself is whole"
            )
