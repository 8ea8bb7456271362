"""The gates of `apply`: measured on the parent before an edit and on the bytes of the new version before it is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.model import EditableModel
from reviver.errors import CheckFailedError
from reviver.evaluation.counterfact import counterfact_scores, measure_facts
from reviver.evaluation.fluency import fluency_prompts, fluency_scores
from reviver.evaluation.gates import Gate, GateOutcome, check_gates, parse_gates
from reviver.evaluation.perplexity import row_perplexity, text_rows, written_rows
from reviver.evaluation.scores import score_continuations
from reviver.facts.fact import Fact
from reviver.files import pretty_json, write_atomic
from reviver.history.chain import known_facts
from reviver.history.manifest import now
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.text import plural, printable
from reviver.verbs.commit import Measured, NewVersion
from reviver.verbs.entries import metrics_of
from reviver.verbs.suites import TextInput, text_input, tidy, version_drift

SCHEMA = 1
SEED = 0
"""Of the generations behind `fluency`."""

_FACTS = frozenset(("efficacy", "es", "paraphrase", "ps", "neighbors_kept", "ns", "s"))
_DRIFT = frozenset(("subspace_similarity", "norm_growth"))

Deltas = Mapping[str, Sequence[Delta]]


class GateKeeper:
    """What one new version has to meet; without gates it measures nothing.

    Args:
        text: the value of `--gate`; None for no gates.
        path: the value of `--gate-text`; without, the base writes the text for `perplexity` itself.

    Raises:
        UsageError: the gates do not parse.
        EvaluationError, FactsError, ResourceError: the file of text cannot be used.
    """

    def __init__(self, text: str | None, path: Path | None = None) -> None:
        self.gates: tuple[Gate, ...] = () if text is None else parse_gates(text)
        self._wanted = {gate.metric for gate in self.gates}
        self._text: TextInput | None = None if path is None else text_input(path, option="--gate-text")
        self._facts: Sequence[Fact] = ()
        self._earlier: Sequence[Fact] = ()
        self._base_said: Sequence[Sequence[bool]] = ()
        self._rows: Sequence[Sequence[int]] = ()
        self._parent: dict[str, float | None] = {}
        self._measured: dict[str, float | None] = {}
        self.outcomes: tuple[GateOutcome, ...] = ()

    def see_base(self, model: EditableModel, facts: Sequence[Fact], chain: Sequence[Version]) -> None:
        """Take what is needed of the base, which the model holds.

        Args:
            model: holds the base.
            facts: those that the new version brings.
            chain: the parent's versions, for the facts that they hold and the new one does not set again.
        """
        self._facts = facts
        if "retained" in self._wanted:
            renewed = {fact.key for fact in facts}
            self._earlier = [one.fact for key, one in known_facts(chain).items() if key not in renewed]
        if "perplexity" in self._wanted:
            self._rows = written_rows(model) if self._text is None else text_rows(model, self._text.texts)

    def see_parent(
        self,
        model: EditableModel,
        folder: CheckpointFolder,
        names: Sequence[str],
        deltas: Deltas,
        base_said: Sequence[Sequence[bool]],
    ) -> None:
        """Measure the parent, which the model holds, where a gate is relative to it.

        Args:
            model, folder, names, deltas: as in `judge`.
            base_said: for each fact which of its neighbours the base answers rightly.
        """
        self._base_said = base_said
        relative = {gate.metric for gate in self.gates if gate.relative}
        self._parent = self._measure(relative, model, folder, names, deltas)

    def judge(
        self, model: EditableModel, folder: CheckpointFolder, names: Sequence[str], deltas: Deltas
    ) -> tuple[GateOutcome, ...]:
        """Measure the new version and return what became of every gate, also kept in `outcomes`.

        Args:
            model: holds the version's bytes.
            folder: the base.
            names: the edited tensors, on disk.
            deltas: the version's, by tensor, oldest first.
        """
        self._measured = self._measure(self._wanted, model, folder, names, deltas)
        self.outcomes = check_gates(self.gates, self._measured, self._parent)
        return self.outcomes

    def _measure(
        self, wanted: set[str], model: EditableModel, folder: CheckpointFolder, names: Sequence[str], deltas: Deltas
    ) -> dict[str, float | None]:
        measured: dict[str, float | None] = {}
        if wanted & _FACTS:
            scores = asdict(counterfact_scores(measure_facts(model, self._facts), self._base_said))
            measured |= {name: scores[name] for name in sorted(_FACTS)}
        if "retained" in wanted:
            said = score_continuations(model, [(fact.text, fact.target_new) for fact in self._earlier])
            # Where there is nothing to forget, nothing was forgotten.
            measured["retained"] = sum(one.exact for one in said) / len(said) if said else 1.0
        if "perplexity" in wanted:
            measured["perplexity"] = row_perplexity(model, self._rows)
        if "fluency" in wanted:
            prompts = fluency_prompts(self._facts, seed=SEED)
            measured["fluency"] = fluency_scores(model, prompts, seed=SEED).fluency
        if wanted & _DRIFT:
            drift = version_drift(folder, names, deltas, model.device)
            measured |= {"subspace_similarity": drift.subspace_similarity, "norm_growth": drift.norm_growth}
        return measured

    def refuse(self, workspace: Workspace, version: str, new: NewVersion, measured: Measured) -> None:
        """Raise where a gate was missed, after keeping what was measured in `.reviver/refused-vN.json`.

        Args:
            workspace: whose lock the caller holds.
            version: the name that the version would have had.
            new: the version.
            measured: what was measured of it beside the gates.

        Raises:
            CheckFailedError: a gate was missed.
        """
        missed = [one for one in self.outcomes if not one.held]
        if not missed:
            return
        path = workspace.private / f"refused-{version}.json"
        kept = {
            "schema": SCHEMA,
            "version": version,
            "parent": new.parent,
            "created": now(),
            "editor": asdict(new.editor),
            "filter": asdict(new.filter),
            "gates": self.outcomes,
            "measured": self._measured,
            "parent_measured": self._parent,
            "metrics": {} if measured.summary is None else metrics_of(measured.summary),
            "tensors": measured.tensors,
            "results": [one.to_record() for one in measured.results],
            "environment": measured.environment,
        }
        write_atomic(path, pretty_json(tidy(kept)))
        raise CheckFailedError(
            f"{version} misses {plural(len(missed), 'gate')} of {len(self.outcomes)} and was not made: "
            + ", ".join(describe_outcome(one) for one in missed),
            hint=f"what was measured is in `{printable(str(path), 200)}`; change the facts, the settings or the gate",
            path=path,
            outcomes=self.outcomes,
        )


def describe_outcome(outcome: GateOutcome) -> str:
    """Return a gate with what was measured, in a few words."""
    value = "nothing to measure" if outcome.value is None else f"{outcome.value:.4g}"
    parent = "" if outcome.parent is None else f", the parent {outcome.parent:.4g}"
    return f"{outcome.gate} ({value}{parent})"
