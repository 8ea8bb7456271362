"""One `apply` at work: the model is loaded, edited round by round, measured on what was written, and committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.rewrite import Chain, WrittenCheckpoint
from reviver.editing.base import open_pinned, put_version, version_tensor
from reviver.editing.layer import EditedLayer
from reviver.editing.model import EditableModel
from reviver.editing.prefixes import write_prefixes
from reviver.editing.preparation import check_loaded
from reviver.editing.ranks import Ranks
from reviver.editing.recall import Recall
from reviver.editing.resume import FinishedRounds
from reviver.editing.session import open_layers, run_rounds
from reviver.errors import NumericsError
from reviver.evaluation.counterfact import neighbors_said
from reviver.evaluation.outcomes import Observation, observe, summarize
from reviver.facts.reader import rejected_to_jsonl
from reviver.files import write_atomic
from reviver.history.chain import chain_deltas
from reviver.history.intent import done
from reviver.history.manifest import Manifest
from reviver.history.operations import made
from reviver.progress import Progress
from reviver.verbs.commit import CheckpointChoice, Committed, Measured, NewVersion, Timer, commit_version
from reviver.verbs.entries import environment_of, metrics_of, result_of, round_entry, tensor_entry
from reviver.verbs.gate import GateKeeper
from reviver.verbs.plan import ApplyPlan
from reviver.verbs.terms import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The model with the parent's values, and what was taken of the base while it held that.

    Attributes:
        model: the model.
        deltas: the parent's, by tensor, oldest first.
        prefixes: the contexts of the facts. The base writes them, so that the same facts get the same ones whatever was
            edited before.
        base_said: for each fact which of its neighbours the base answers rightly; None where the parent is the base.
        layers: the edited tensors.
        recall: what the editor remembers of the versions below.
        stored: the parent's values by tensor. In the machine's memory: the device has better use for its own.
    """

    model: EditableModel
    deltas: Mapping[str, Sequence[Delta]]
    prefixes: tuple[str, ...]
    base_said: Sequence[Sequence[bool]] | None
    layers: list[EditedLayer]
    recall: Recall
    stored: Mapping[str, torch.Tensor]


class Edit:
    """One `apply` at work; the caller holds the workspace's lock.

    Args:
        terms: what it works with.
        gate: what the version has to meet.
        message: what the version is for.
        checkpoint: whether one is written.
        progress: told about the long parts.

    Attributes:
        timer: how long the phases took.
        rejected_file: where records that were set aside are kept; None where there are none.
        distances: by tensor, how far all updates so far have moved it, relative to its norm in the base.
    """

    def __init__(self, terms: Terms, gate: GateKeeper, *, message: str, checkpoint: bool, progress: Progress) -> None:
        self.terms = terms
        self.gate = gate
        self.message = message
        self.checkpoint = checkpoint
        self.progress = progress
        self.timer = Timer()
        self.rejected_file: Path | None = None
        self.distances: dict[str, float] = {}

    def run(self, plan: ApplyPlan, processes: Ranks) -> Committed:
        """Edit, write, measure, commit; raises as `apply`."""
        terms, facts = self.terms, self.terms.file.facts
        with self.timer.phase("load"):
            opened = self._open(plan, processes)
        with self.timer.phase("measure before"):
            before = observe(opened.model, facts)
            base_said = opened.base_said or [one.neighbors for one in before]
            self.gate.see_parent(opened.model, terms.folder, terms.pin.edited, opened.deltas, base_said)
        with self.timer.phase("edit"):
            finished = FinishedRounds(
                terms.workspace.rounds,
                terms.fingerprint(opened.prefixes, environment_of(opened.model), processes.size),
                terms.editor,
            )
            records = run_rounds(
                opened.model,
                opened.layers,
                terms.rounds,
                opened.prefixes,
                terms.round_settings(),
                finished=finished,
                progress=self.progress,
            )
        self.distances = {edited.name: edited.distance() for edited in opened.layers}
        new = NewVersion(
            verb="apply",
            parent=terms.parent,
            deltas=opened.deltas,
            changes={edited.name: edited.total.delta() for edited in opened.layers},
            facts=facts,
            editor=terms.manifest_editor(),
            filter=terms.manifest_filter(),
            rounds=[round_entry(record, opened.prefixes, terms.settings.targets) for record in records],
            message=self.message,
        )

        def measure(chain: Chain, written: WrittenCheckpoint) -> Measured:
            with self.timer.phase("measure after"):
                measured = self._measure(opened, before, base_said, chain, written)
            self.gate.refuse(terms.workspace, plan.version, new, measured)
            self._keep_rejected(plan.version)
            return measured

        committed = self._commit(new, measure, opened)
        with done(made(plan.version)):
            finished.clear()
        return committed

    def _open(self, plan: ApplyPlan, processes: Ranks) -> Opened:
        terms, facts = self.terms, self.terms.file.facts
        deltas = chain_deltas(terms.chain, terms.pin)
        model = open_pinned(
            terms.pin, terms.folder, terms.settings, terms.device, placement=plan.memory.placement, ranks=processes
        )
        check_loaded(model, terms.folder)
        wanted = terms.settings.targets
        prefixes = write_prefixes(model, count=wanted.prefixes, tokens=wanted.prefix_length, seed=wanted.seed)
        base_said = neighbors_said(model, facts) if deltas else None
        self.gate.see_base(model, facts, terms.chain)
        put_version(model, terms.folder, deltas)
        layers = open_layers(
            model, terms.preparation, deltas, terms.ranks, terms.editor, moment_weight=terms.moment_weight
        )
        recall = Recall(terms.workspace, terms.preparation, terms.editor, terms.editor_settings, prefixes)
        recall.into(layers, terms.chain, model)
        return Opened(
            model=model,
            deltas=deltas,
            prefixes=prefixes,
            base_said=base_said,
            layers=layers,
            recall=recall,
            stored={edited.name: self._stored(edited.name, deltas).cpu() for edited in layers},
        )

    def _stored(self, name: str, chain: Mapping[str, Sequence[Delta]]) -> torch.Tensor:
        return version_tensor(self.terms.folder, name, chain.get(name, ()), self.terms.device)

    def _measure(
        self,
        opened: Opened,
        before: Sequence[Observation],
        base_said: Sequence[Sequence[bool]],
        chain: Chain,
        written: WrittenCheckpoint,
    ) -> Measured:
        """Measure what ships: the bytes of the new version, not the sums they came from."""
        terms, model, facts = self.terms, opened.model, self.terms.file.facts
        results_DE = {edited.name: self._stored(edited.name, chain) for edited in opened.layers}
        for edited in opened.layers:
            model.put_weight(edited.layer, results_DE[edited.name])
        try:
            after = observe(model, facts)
            outcomes = self.gate.judge(model, terms.folder, terms.pin.edited, chain)
        except NumericsError as error:
            raise NumericsError(
                "the edited model answers with NaN or infinity; no version was made",
                hint="compute in float32 or bfloat16 with `--dtype`, use smaller rounds with `--round-size`, or "
                f"{terms.editor.restraint} in `reviver.toml`",
            ) from error
        tensors = [
            tensor_entry(
                terms.preparation,
                edited,
                opened.stored[edited.name].to(terms.device),
                results_DE[edited.name],
                written,
            )
            for edited in opened.layers
        ]
        summary = summarize(before, after, base_said)
        return Measured(
            tensors=tensors,
            results=[result_of(fact, old, new) for fact, old, new in zip(facts, before, after, strict=True)],
            summary=summary,
            metrics=metrics_of(summary) | ({"gates": [asdict(one) for one in outcomes]} if outcomes else {}),
            environment=environment_of(model),
        )

    def _commit(
        self, new: NewVersion, measure: Callable[[Chain, WrittenCheckpoint], Measured], opened: Opened
    ) -> Committed:
        terms, wanted = self.terms, self.terms.settings.apply

        def remember(manifest: Manifest) -> None:
            opened.recall.save(manifest, opened.layers)

        return commit_version(
            terms.workspace,
            terms.pin,
            terms.folder,
            new,
            measure,
            checkpoints=CheckpointChoice(
                write=self.checkpoint, link_mode=wanted.link_mode, keep=wanted.keep_checkpoints
            ),
            timer=self.timer,
            progress=self.progress,
            before_commit=remember,
        )

    def _keep_rejected(self, name: str) -> None:
        if self.terms.file.rejected:
            self.rejected_file = self.terms.workspace.private / f"rejected-{name}.jsonl"
            write_atomic(self.rejected_file, rejected_to_jsonl(self.terms.file.rejected))
