"""`reviver show V`: one version, from its manifest, facts and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reviver.errors import ReviverError
from reviver.history.evaluations import evaluations_folder, read_evaluations
from reviver.history.manifest import (
    BASE_NAME,
    ManifestBase,
    ManifestEditor,
    ManifestFilter,
    ManifestTensor,
)
from reviver.history.results import FactResult
from reviver.history.untrusted import problem_of
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.verbs.recorded import About, about, by_fact

SHOWN_FACTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFact:
    """One fact and what was measured for it."""

    id: str
    text: str
    """The prompt with the subject in its place."""
    target_new: str
    target_true: str | None
    answer_before: str | None
    answer_after: str | None
    probability_before: float | None
    """Of the new target, before the patch."""
    probability_after: float | None
    success: bool | None
    """None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFile:
    """One file of the checkpoint."""

    path: str
    size: int
    sha256: str
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownEvaluation:
    """The latest measurement of one suite."""

    suite: str
    created: str
    metrics: Mapping[str, float]
    """Its single numbers; groups of them stand in its file only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowReport:
    """One version; of the base only the fields that a base has."""

    version: str
    id: str
    head: bool
    parent: str | None
    message: str | None
    created: str | None
    base: ManifestBase
    editor: ManifestEditor | None
    filter: ManifestFilter | None
    patch_bytes: int | None
    patch_sha256: str | None
    tensors: tuple[ManifestTensor, ...]
    files: tuple[ShownFile, ...]
    checkpoint: Path | None
    """Where its checkpoint is, if it is written."""
    facts: tuple[ShownFact, ...]
    facts_total: int
    successes: int | None
    """How many facts were answered as wanted; None where nothing was measured."""
    metrics: Mapping[str, Any]
    evaluations: tuple[ShownEvaluation, ...]
    """What `eval` measured last, by suite."""
    warnings: tuple[str, ...]


def show(workspace_dir: Path, name: str = "head", *, facts: int | None = SHOWN_FACTS) -> ShowReport:
    """Return what is known about one version.

    Args:
        name: as a person names it (`v3`, `head`, `base`, a tag, the beginning of an id).
        facts: how many facts at most; None for all.

    Raises:
        WorkspaceError, VersionNotFoundError, ManifestError: there is no workspace or no such version, or it is damaged.
    """
    workspace = Workspace.open(workspace_dir)
    found = workspace.resolve(name)
    if found == BASE_NAME:
        return _show_base(workspace)
    version = workspace.version(found)
    manifest = version.manifest
    warnings: list[str] = []
    results: dict[About, FactResult] = {}
    try:
        results = by_fact(version.results())
    except ReviverError as error:
        warnings.append(problem_of(error))
    shown_facts = _shown_facts(version, results, warnings)
    evaluations = _shown_evaluations(workspace, found, version.id, warnings)
    checkpoint = workspace.checkpoint(found)
    return ShowReport(
        version=found,
        id=version.id,
        head=workspace.head() == found,
        parent=version.parent,
        message=manifest.message,
        created=manifest.created,
        base=manifest.base,
        editor=manifest.editor,
        filter=manifest.filter,
        patch_bytes=manifest.patch.size,
        patch_sha256=manifest.patch.sha256,
        tensors=manifest.tensors,
        files=tuple(
            ShownFile(path=file.path, size=file.size, sha256=file.sha256, changed=file.changed)
            for file in manifest.files
        ),
        checkpoint=checkpoint if checkpoint.is_dir() else None,
        facts=shown_facts if facts is None else shown_facts[:facts],
        facts_total=manifest.facts.count,
        # A version that was made from patches has results of other versions' facts as well.
        successes=sum(known) if (known := [one.success for one in shown_facts if one.success is not None]) else None,
        metrics=manifest.metrics,
        evaluations=evaluations,
        warnings=tuple(warnings),
    )


def _show_base(workspace: Workspace) -> ShowReport:
    pin = workspace.pin()
    warnings: list[str] = []
    return ShowReport(
        version=BASE_NAME,
        id=pin.fingerprint,
        head=workspace.head() == BASE_NAME,
        parent=None,
        message=None,
        created=None,
        base=ManifestBase(model=pin.model, revision=pin.revision, fingerprint=pin.fingerprint),
        editor=None,
        filter=None,
        patch_bytes=None,
        patch_sha256=None,
        tensors=(),
        files=tuple(ShownFile(path=file.path, size=file.size, sha256=file.sha256, changed=False) for file in pin.files),
        checkpoint=Path(pin.folder),
        facts=(),
        facts_total=0,
        successes=None,
        metrics={},
        evaluations=_shown_evaluations(workspace, BASE_NAME, pin.fingerprint, warnings),
        warnings=tuple(warnings),
    )


def _shown_evaluations(
    workspace: Workspace, version: str, version_id: str, warnings: list[str]
) -> tuple[ShownEvaluation, ...]:
    found, problems = read_evaluations(evaluations_folder(workspace, version))
    warnings += problems
    shown = []
    for one in found:
        if one.version_id != version_id:
            warnings.append(f"`{version}/evaluations/{one.suite}.json` was measured on another version")
            continue
        numbers = {key: value for key, value in one.metrics.items() if type(value) in (int, float)}
        shown.append(ShownEvaluation(suite=one.suite, created=one.created, metrics=numbers))
    return tuple(shown)


def _shown_facts(version: Version, results: Mapping[About, FactResult], warnings: list[str]) -> tuple[ShownFact, ...]:
    try:
        facts = version.facts()
    except ReviverError as error:
        warnings.append(problem_of(error))
        return ()
    shown = []
    for fact in facts:
        result = results.get(about(fact))
        shown.append(
            ShownFact(
                id=fact.id,
                text=fact.text,
                target_new=fact.target_new,
                target_true=fact.target_true,
                answer_before=None if result is None else result.before.answer,
                answer_after=None if result is None else result.after.answer,
                probability_before=None if result is None else result.before.probability_new,
                probability_after=None if result is None else result.after.probability_new,
                success=None if result is None else result.success,
            )
        )
    return tuple(shown)
