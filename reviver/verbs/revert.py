"""`reviver revert V`: a new version on the head without one patch of its chain, or without one fact of that patch.

A version's bytes are the exact sum of the base and all patches below it, so the patch of a revert is what it drops with the other
sign, and what is left are the bytes of the base and the other patches. Those were solved for with the dropped one in place:
what became of their facts is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import ReviverError, UsageError, WorkspaceError
from reviver.history.contributions import common_filter, protected_ranks, undoing
from reviver.history.ledger import Ledger, TakenBack, taken_back
from reviver.history.manifest import BASE_NAME
from reviver.history.results import FactResult
from reviver.history.untrusted import problem_of, shown
from reviver.history.version import Version
from reviver.history.workspace import Workspace, require_head
from reviver.progress import Progress
from reviver.settings import Settings
from reviver.text import plural
from reviver.verbs.made import MadeReport, MakeChoice
from reviver.verbs.recorded import About, about, results_of
from reviver.verbs.remake import Recipe, Remaker


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedFact:
    """A fact that the new version no longer holds.

    Attributes:
        id, prompt, subject, target_new: the fact.
        answer_first: what the model answered before the fact was set, as measured then; None where it was not.
        answer_before: what it answered before the revert.
        answer_after: what it answers now.
        back: whether that is the first answer again; None where there is none to compare with.
    """

    id: str
    prompt: str
    subject: str
    target_new: str
    answer_first: str | None
    answer_before: str
    answer_after: str
    back: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertReport(MadeReport):
    """What a revert did.

    Attributes:
        reverted: the version whose patch, or facts, were dropped.
        facts: ids of the facts that were taken back, if single ones were asked for.
        dropped: each fact that is no longer in force, with its answers; empty where nothing was measured.
    """

    reverted: str
    facts: tuple[str, ...]
    dropped: tuple[DroppedFact, ...]


def revert(
    workspace_dir: Path,
    name: str,
    *,
    settings: Settings,
    facts: Sequence[str] = (),
    choice: MakeChoice | None = None,
    progress: Progress | None = None,
) -> RevertReport:
    """Drop a version's patch, or single facts of it, in a new version on the head.

    Args:
        name: a version that the head stands on, as a person names it.
        facts: ids of single facts; none for the whole patch.

    Raises:
        VersionNotFoundError: nothing goes by this name.
        WorkspaceError: the head does not stand on it, it has no such fact, nothing of it is left, or its patch does not keep
            its facts apart.
        BaseMismatchError, ManifestError: the base or a version is not what it was.
        UnsupportedModelError, ResourceError: the model cannot be loaded, or the disk is too small.
        LockedError: another process is writing.
    """
    workspace = Workspace.open(workspace_dir)
    choice = choice or MakeChoice()
    with workspace.lock("revert"):
        found = workspace.resolve(name)
        if found == BASE_NAME:
            raise UsageError("the base has no patch to revert", hint="name a version from `reviver log`")
        remaker = Remaker(workspace, require_head(workspace), settings, choice, progress)
        version = _find(found, remaker)
        taken = _taken(version, facts, remaker)
        what = version.name if taken.whole else f"{plural(len(taken.facts), 'fact')} of {version.name}"
        parts = undoing(taken, remaker.chain, remaker.ledger)
        sources = [source for source, _ in parts] or [version]
        first = _first_answers(taken, remaker) if choice.measure else {}
        report = remaker.make(
            Recipe(
                verb="revert",
                parts=[part for _, part in parts],
                facts=(),
                takes=[taken],
                settings={"reverts": version.id},
                filter=common_filter(sources),
                protected=protected_ranks(sources),
                message=choice.message or f"Revert {what}",
                nothing=f"nothing of {version.name} is left to take back",
            )
        )
    return RevertReport(
        **report.values(),
        reverted=version.name,
        facts=() if taken.whole else taken.facts,
        dropped=tuple(_dropped(result, first) for result in (report.outcomes.dropped if report.outcomes else ())),
    )


def _find(name: str, remaker: Remaker) -> Version:
    for version in remaker.chain:
        if version.name == name:
            return version
    raise WorkspaceError(
        f"the head, {remaker.parent}, does not stand on {name}",
        hint="`reviver log` shows what it stands on; `reviver merge` brings another branch in",
        version=name,
    )


def _taken(version: Version, facts: Sequence[str], remaker: Remaker) -> TakenBack:
    """Return what is to be taken back: single facts of a version, or all that is left of it."""
    standing = remaker.ledger.standings[version.id]
    for id in facts:
        if id not in standing.facts:
            raise WorkspaceError(
                f"{version.name} has no fact `{shown(id)}`",
                hint=f"`reviver show {version.name} --facts` lists them with their ids",
                version=version.name,
            )
        if id not in standing.active:
            raise _already(version, f"the fact `{shown(id)}` of {version.name}", remaker)
    if not facts and standing.gone and not standing.active:
        raise _already(version, version.name, remaker)
    active = tuple(id for id in standing.facts if id in standing.active)
    wanted = tuple(id for id in active if not facts or id in facts)
    # All facts of a version that takes nothing back are the version.
    whole = not standing.gone and (not facts or (wanted == active and not standing.takes))
    return TakenBack(version=version.id, facts=wanted, whole=whole)


def _already(version: Version, what: str, remaker: Remaker) -> WorkspaceError:
    by = [one.name for one in remaker.chain if any(taken.version == version.id for taken in taken_back(one))]
    hint = f"`reviver revert {by[-1]}` brings it back" if by else "`reviver log` shows the versions there are"
    return WorkspaceError(f"{what} is taken back already", hint=hint, version=version.name)


def _first_answers(taken: TakenBack, remaker: Remaker) -> dict[About, str]:
    """Return what was answered before each fact that goes was set; the latest measurement counts.

    Where a version's results are missing or damaged, its answers are not known, and a warning says so.
    """
    ledger = Ledger(remaker.chain)
    lost = {about(fact) for fact in ledger.facts_of(ledger.take_back(taken).lost)}
    answers: dict[About, str] = {}
    for version in remaker.chain:
        own = [fact for fact in ledger.standings[version.id].facts.values() if about(fact) in lost]
        if not own:
            continue
        try:
            found = results_of(version, own)
            problem = None if version.results_file.exists() else f"`{version.name}/results.jsonl` is missing"
        except ReviverError as error:
            found, problem = {}, problem_of(error)
        if problem is not None:
            remaker.warnings.append(f"what was answered before {version.name} is not known: {problem}")
        answers |= {key: result.before.answer for key, result in found.items()}
    return answers


def _dropped(result: FactResult, first: Mapping[About, str]) -> DroppedFact:
    answer = first.get(about(result))
    return DroppedFact(
        id=result.id,
        prompt=result.prompt,
        subject=result.subject,
        target_new=result.target_new,
        answer_first=answer,
        answer_before=result.before.answer,
        answer_after=result.after.answer,
        back=None if answer is None else answer == result.after.answer,
    )
