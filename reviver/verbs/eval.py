"""`reviver eval`: how a version does, measured on the bytes that it ships with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.editing.versions import VersionModel
from reviver.errors import UsageError
from reviver.facts.reader import read_facts
from reviver.history.chain import known_facts
from reviver.history.evaluations import Evaluation, evaluations_folder, write_evaluation
from reviver.history.manifest import now
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.text import printable
from reviver.verbs.entries import environment_of
from reviver.verbs.suites import (
    COUNTERFACT,
    FLUENCY,
    SUITES,
    ZSRE,
    FactInput,
    Inputs,
    SuiteRunner,
    check_inputs,
    default_suites,
    fact_input,
    pair_input,
    text_input,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What a person wants measured.

    Attributes:
        suites: names of suites; none for all that have what they need.
        facts: a file of facts to measure instead of those that the version holds.
        text: a file of ordinary text; without, the base writes its own.
        pairs: a file of minimal pairs.
        tasks: lm-eval's tasks.
        limit: examples of each task at most.
        seed: of the generations.
    """

    suites: tuple[str, ...] = ()
    facts: Path | None = None
    text: Path | None = None
    pairs: Path | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """One suite.

    Attributes:
        suite: its name.
        metrics: what was measured; None for what could not be.
        settings: what the numbers depend on.
        file: where they are kept.
    """

    suite: str
    metrics: Mapping[str, object]
    settings: Mapping[str, object]
    file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """What an `eval` measured.

    Attributes:
        version: the version's name; `v0` is the base.
        id: its id; the base's fingerprint.
        suites: in the order in which they were run.
        seconds: for everything.
        warnings: what a person should know.
    """

    version: str
    id: str
    suites: tuple[SuiteResult, ...]
    seconds: float
    warnings: tuple[str, ...]


def evaluate(
    workspace_dir: Path,
    name: str = "head",
    request: EvalRequest | None = None,
    *,
    settings: Settings,
    progress: Progress | None = None,
) -> EvalReport:
    """Measure a version and keep the results beside it, a file a suite, replacing the suite's last one.

    Everything that is wrong with the request is found before the model is loaded and before anything is written. Each suite is
    kept as soon as it is done.

    Args:
        workspace_dir: an initialised workspace.
        name: as a person names a version (`v3`, `head`, `base`, a tag).
        request: suites and files.
        settings: device and dtype.
        progress: told about the long parts.

    Raises:
        UsageError: a suite is unknown or lacks what it needs.
        FactsError, EvaluationError: a file is malformed; the message names file and line.
        WorkspaceError, VersionNotFoundError, ManifestError, BaseMismatchError: there is no such version, or it is damaged.
        ResourceError: device, memory, disk or lm-eval are missing.
    """
    start = time.monotonic()
    request = request or EvalRequest()
    progress = progress or NullProgress()
    _check_names(request.suites)
    warnings: list[str] = []
    given = _given_facts(request, warnings)
    text = None if request.text is None else text_input(request.text, option="--text")
    pairs = None if request.pairs is None else pair_input(request.pairs)
    workspace = Workspace.open(workspace_dir)
    with workspace.lock("eval"):
        version = workspace.resolve(name)
        inputs = Inputs(
            facts=given or _held_facts(workspace, version, request.suites, warnings),
            text=text,
            pairs=pairs,
            tasks=request.tasks,
            limit=request.limit,
            seed=request.seed,
        )
        suites = tuple(suite for suite in SUITES if suite in request.suites) or default_suites(version, inputs)
        check_inputs(suites, inputs)
        runner = SuiteRunner(VersionModel(workspace, settings), version, suites, inputs, progress)
        version_id = workspace.version_id(version)
        results = []
        for suite in suites:
            metrics, used = runner.run(suite)
            evaluation = Evaluation(
                suite=suite,
                version=version,
                version_id=version_id,
                created=now(),
                metrics=metrics,
                settings=used,
                environment=environment_of(runner.model),
            )
            file = write_evaluation(evaluations_folder(workspace, version), evaluation)
            results.append(SuiteResult(suite=suite, metrics=metrics, settings=used, file=file))
        workspace.record("eval", {"version": version, "suites": list(suites)})
    return EvalReport(
        version=version,
        id=version_id,
        suites=tuple(results),
        seconds=round(time.monotonic() - start, 3),
        warnings=tuple(warnings),
    )


def _check_names(suites: Sequence[str]) -> None:
    for suite in suites:
        if suite not in SUITES:
            raise UsageError(
                f"there is no suite `{printable(suite, 40)}`", hint=f"the suites are {', '.join(SUITES)}", suite=suite
            )


def _given_facts(request: EvalRequest, warnings: list[str]) -> FactInput | None:
    if request.facts is None:
        return None
    file = read_facts(request.facts)
    warnings += file.warnings
    return fact_input(file.facts, None, kind="file", name=request.facts.name)


def _held_facts(workspace: Workspace, version: str, suites: Sequence[str], warnings: list[str]) -> FactInput | None:
    """Return the facts that a version holds, each with its last target only, in the order in which they were set.

    None where no suite asks for them, and, unless one was named that does, where their text was not published.
    """
    asked_for = bool({COUNTERFACT, ZSRE}.intersection(suites))
    if suites and not asked_for and FLUENCY not in suites:
        return None
    chain = workspace.chain(version)
    withheld = [one.name for one in chain if one.withheld]
    if withheld and not asked_for:
        warnings.append(f"the facts of {', '.join(withheld)} are withheld, so nothing was measured on facts")
        return None
    known = list(known_facts(chain).values())
    if not known:
        return None
    return fact_input([one.fact for one in known], [one.version for one in known], kind="held by the version")
