"""The suites of `eval`: what each needs, checked before a model is loaded, and how each is measured on a version."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import torch

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.base import version_tensor
from reviver.editing.corpus import TextFile
from reviver.editing.versions import VersionModel
from reviver.errors import EvaluationError, UsageError
from reviver.evaluation.ages import by_version, in_blocks
from reviver.evaluation.counterfact import counterfact_scores, measure_facts, neighbors_said
from reviver.evaluation.drift import DriftScores, drift_basis, drift_scores, tensor_drift
from reviver.evaluation.fluency import TOKENS, TOP_K, fluency_prompts, fluency_scores
from reviver.evaluation.harness import check_harness, run_tasks
from reviver.evaluation.pair_file import MinimalPair, read_pairs
from reviver.evaluation.pairs import pair_scores
from reviver.evaluation.perplexity import (
    WRITTEN_LENGTH,
    WRITTEN_SEED,
    row_perplexity,
    text_rows,
    written_rows,
)
from reviver.evaluation.zsre import zsre_scores
from reviver.facts.fact import Fact, facts_to_jsonl
from reviver.files import sha256_bytes, sha256_file
from reviver.history.manifest import BASE_NAME
from reviver.progress import Progress
from reviver.text import printable

COUNTERFACT, ZSRE, FLUENCY, PERPLEXITY, PAIRS, DRIFT, HARNESS = SUITES = (
    "counterfact",
    "zsre",
    "fluency",
    "perplexity",
    "pairs",
    "drift",
    "lm-eval",
)
"""All suites, in the order in which they are run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInput:
    """Texts of a file, and what says which file it was, without its folder."""

    texts: tuple[str, ...]
    source: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairInput:
    """Minimal pairs of a file, and what says which file it was."""

    pairs: tuple[MinimalPair, ...]
    source: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactInput:
    """The facts to measure.

    Attributes:
        facts: in the order in which they were set.
        versions: the version that set each of them last; None where they come from a file.
        source: what says which facts they were.
    """

    facts: tuple[Fact, ...]
    versions: tuple[str, ...] | None
    source: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the suites are measured on; each part is None where nobody gave it."""

    facts: FactInput | None = None
    text: TextInput | None = None
    pairs: PairInput | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0


def fact_input(facts: Sequence[Fact], versions: Sequence[str] | None, **source: object) -> FactInput:
    """Return facts with the record of what they are."""
    digest = sha256_bytes(facts_to_jsonl(facts))
    return FactInput(
        facts=tuple(facts),
        versions=None if versions is None else tuple(versions),
        source={**source, "count": len(facts), "sha256": digest},
    )


def text_input(path: Path, *, option: str) -> TextInput:
    """Read the texts of a file: paragraphs of plain text, or the `text` fields of JSONL.

    Raises:
        EvaluationError, FactsError, ResourceError: it is missing, malformed, empty or cannot be read.
    """
    file = TextFile(path, _digest(path, option), option=option)
    texts = tuple(file)
    if not texts:
        raise EvaluationError(f"`{printable(str(path), 200)}` holds no text", hint=f"give another `{option}`")
    return TextInput(texts=texts, source={"name": path.name, "sha256": file.sha256, "texts": len(texts)})


def pair_input(path: Path) -> PairInput:
    """Read a file of minimal pairs; raises as `read_pairs`."""
    digest = _digest(path, "--pairs")
    pairs = read_pairs(path)
    return PairInput(pairs=pairs, source={"name": path.name, "sha256": digest})


def _digest(path: Path, option: str) -> str:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise EvaluationError(f"`{printable(str(path), 200)}` {what}", hint=f"check `{option}`", path=path)
    try:
        return sha256_file(path)
    except OSError as error:
        raise EvaluationError(
            f"`{printable(str(path), 200)}` cannot be read: {(error.strerror or '').lower()}", hint=f"check `{option}`"
        ) from error


def check_inputs(suites: Sequence[str], inputs: Inputs) -> None:
    """Raise unless every suite has what it needs.

    Raises:
        UsageError: one lacks a file, facts or tasks.
        ResourceError: lm-eval is wanted and not installed.
    """
    needs = {
        COUNTERFACT: (inputs.facts, "facts", "give them with `--facts FILE`, or name a version that holds some"),
        ZSRE: (inputs.facts, "facts", "give them with `--facts FILE`, or name a version that holds some"),
        PAIRS: (inputs.pairs, "minimal pairs", "give them with `--pairs FILE`"),
        HARNESS: (inputs.tasks, "tasks", "name them with `--task NAME`, as `lm_eval ls tasks` lists them"),
    }
    for suite in suites:
        given, what, hint = needs.get(suite, (True, "", ""))
        if not given:
            raise UsageError(f"the suite `{suite}` has no {what} to measure", hint=hint, suite=suite)
    if HARNESS in suites:
        check_harness()


class SuiteRunner:
    """Measures suites on one version of a model in memory.

    Args:
        versions: the model, which holds the base; it holds the version afterwards.
        version: the version to measure.
        suites: all that will be run, so that what they need of the base is measured while it is there.
        inputs: what they are measured on; `check_inputs` has seen them.
        progress: told about the prompts.
    """

    def __init__(
        self, versions: VersionModel, version: str, suites: Sequence[str], inputs: Inputs, progress: Progress
    ) -> None:
        self.versions = versions
        self.inputs = inputs
        self.progress = progress
        self.facts: Sequence[Fact] = inputs.facts.facts if inputs.facts is not None else ()
        self._base_said = neighbors_said(versions.model, self.facts, progress=progress) if COUNTERFACT in suites else []
        self._rows: Sequence[Sequence[int]] = ()
        if PERPLEXITY in suites:
            text = inputs.text
            self._rows = written_rows(versions.model) if text is None else text_rows(versions.model, text.texts)
        self._deltas = versions.deltas(version)
        self.model = versions.put(version, self._deltas)
        self._run: Mapping[str, Callable[[], tuple[dict[str, object], dict[str, object]]]] = {
            COUNTERFACT: self._counterfact,
            ZSRE: self._zsre,
            FLUENCY: self._fluency,
            PERPLEXITY: self._perplexity,
            PAIRS: self._pairs,
            DRIFT: self._drift,
            HARNESS: self._harness,
        }

    def run(self, suite: str) -> tuple[dict[str, object], dict[str, object]]:
        """Return what a suite measures, and the settings that the numbers depend on."""
        metrics, settings = self._run[suite]()
        return {name: tidy(value) for name, value in metrics.items()}, settings

    def _counterfact(self) -> tuple[dict[str, object], dict[str, object]]:
        measures = measure_facts(self.model, self.facts, progress=self.progress)
        metrics: dict[str, object] = asdict(counterfact_scores(measures, self._base_said))
        versions = None if self.inputs.facts is None else self.inputs.facts.versions
        if versions is not None:
            metrics["ages"] = by_version(versions, measures)
            metrics["blocks"] = in_blocks(measures)
        metrics["missed"] = [
            fact.id for fact, one in zip(self.facts, measures, strict=True) if not one.rewrite.wanted.exact
        ]
        return metrics, self._fact_settings()

    def _fact_settings(self) -> dict[str, object]:
        return {} if self.inputs.facts is None else {"facts": dict(self.inputs.facts.source)}

    def _zsre(self) -> tuple[dict[str, object], dict[str, object]]:
        return asdict(zsre_scores(self.model, self.facts, progress=self.progress)), self._fact_settings()

    def _fluency(self) -> tuple[dict[str, object], dict[str, object]]:
        seed = self.inputs.seed
        prompts = fluency_prompts(self.facts, seed=seed)
        settings = {"seed": seed, "tokens": TOKENS, "top_k": TOP_K, **self._fact_settings()}
        return asdict(fluency_scores(self.model, prompts, seed=seed)), settings

    def _perplexity(self) -> tuple[dict[str, object], dict[str, object]]:
        text = self.inputs.text
        written: dict[str, object] = {"kind": "written by the base", "seed": WRITTEN_SEED, "length": WRITTEN_LENGTH}
        settings: dict[str, object] = {"text": written if text is None else {"kind": "file", **text.source}}
        tokens = sum(len(row) - 1 for row in self._rows)
        return {"perplexity": row_perplexity(self.model, self._rows), "tokens": tokens}, settings

    def _pairs(self) -> tuple[dict[str, object], dict[str, object]]:
        given = self.inputs.pairs
        assert given is not None
        return asdict(pair_scores(self.model, given.pairs)), {"pairs": dict(given.source)}

    def _drift(self) -> tuple[dict[str, object], dict[str, object]]:
        versions = self.versions
        names = list(dict.fromkeys([*versions.pin.edited, *self._deltas]))
        with self.progress.task("drift", total=len(names), unit="tensors") as task:
            scores = version_drift(versions.folder, names, self._deltas, versions.device, advance=task.advance)
        return asdict(scores), {}

    def _harness(self) -> tuple[dict[str, object], dict[str, object]]:
        tasks, limit = self.inputs.tasks, self.inputs.limit
        return {"tasks": run_tasks(self.model, tasks, limit=limit)}, {"tasks": list(tasks), "limit": limit}


def version_drift(
    folder: CheckpointFolder,
    names: Sequence[str],
    deltas: Mapping[str, Sequence[Delta]],
    device: torch.device,
    *,
    advance: Callable[[], None] | None = None,
) -> DriftScores:
    """Return the drift of a version, on the values that it stores.

    Args:
        folder: the base.
        names: tensors, on disk; those that the version does not change count as without drift.
        deltas: the version's, by tensor, oldest first.
        device: where to compute.
        advance: called after each tensor.
    """
    tensors = []
    for name in names:
        base = drift_basis(version_tensor(folder, name, (), device))
        chain = deltas.get(name, ())
        edited = drift_basis(version_tensor(folder, name, chain, device)) if chain else base
        tensors.append(tensor_drift(name, base, edited))
        if advance is not None:
            advance()
    return drift_scores(tensors)


def tidy(value: object) -> object:
    """Return a measurement as plain JSON values: numbers to six decimals, None for what is not finite."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return tidy(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    return value


def default_suites(version: str, inputs: Inputs) -> tuple[str, ...]:
    """Return the suites that are measured where none is named: all that have what they need, lm-eval's tasks if named."""
    wanted = {
        COUNTERFACT: inputs.facts is not None,
        FLUENCY: True,
        PERPLEXITY: True,
        PAIRS: inputs.pairs is not None,
        DRIFT: version != BASE_NAME,
        HARNESS: bool(inputs.tasks),
    }
    return tuple(suite for suite in SUITES if wanted.get(suite, False))
