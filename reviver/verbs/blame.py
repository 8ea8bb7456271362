"""`reviver blame SUBJECT|PROMPT`: which version set a fact, which changed it again, and what the model answered."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reviver.errors import FactsError, ReviverError, UsageError
from reviver.facts.fact import PLACEHOLDER, Fact
from reviver.history.ledger import Key
from reviver.history.results import FactResult
from reviver.history.tracing import Change, What, trace
from reviver.history.untrusted import problem_of
from reviver.history.version import Version, withheld_warnings
from reviver.history.workspace import Workspace
from reviver.text import printable
from reviver.verbs.recorded import About, about, results_of

Match = Literal["exact", "case", "part"]
_MATCHES: tuple[Match, ...] = ("exact", "case", "part")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlamedChange:
    """What one version did to a fact, and what the model answered before and after it."""

    version: str
    id: str
    created: str
    message: str
    what: What
    """`set`, `changed`, `taken back` or `restored`."""
    target: str
    """The answer that the version wanted; of a fact that was taken back, the one that went."""
    answer_before: str | None
    """None where it was not measured."""
    answer_after: str | None
    probability_before: float | None
    """Of `target`, before the version."""
    probability_after: float | None
    success: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlamedFact:
    """One fact and what became of it along the chain."""

    subject: str
    prompt: str
    text: str
    """The prompt with the subject in its place."""
    target: str | None
    """The answer in force; None where it was taken back."""
    version: str | None
    """The version that set it last; None where it was taken back."""
    changes: tuple[BlamedChange, ...]
    """Oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlameReport:
    """All facts that were meant."""

    query: str
    at: str
    """The version whose chain was searched."""
    match: Match
    """How the subject or the prompt is what was asked for: to the letter, but for capitals, or in part."""
    facts: tuple[BlamedFact, ...]
    """In the order in which they were set first."""
    warnings: tuple[str, ...]


def blame(workspace_dir: Path, query: str, at: str = "head") -> BlameReport:
    """Return what became of the facts about a subject, or with a prompt.

    A subject, a prompt (with `{}` or with the subject in its place) that is the query to the letter is taken alone; else
    one that differs in capitals only; else every one that holds the query, whatever its capitals.

    Args:
        query: a subject, a prompt, or a part of one.
        at: the version whose chain is searched.

    Raises:
        UsageError: the query is empty.
        FactsError: no fact on the chain is meant.
        WorkspaceError, VersionNotFoundError, ManifestError: no workspace, no such version, or a damaged one.
    """
    query = query.strip()
    if not query:
        raise UsageError("there is nothing to look for", hint="give a subject or a prompt, or a part of one")
    workspace = Workspace.open(workspace_dir)
    name = workspace.resolve(at)
    chain = workspace.chain(name)
    match, traced = _search(chain, query)
    keys = list(traced)
    warnings = withheld_warnings(chain)
    if not keys:
        raise FactsError(
            f"no fact of {name} or below it is about `{printable(query, 80)}`"
            + (f" ({warnings[0]})" if warnings else ""),
            hint="give a part of the subject, or another version with `--at V`; `reviver log --graph` shows them",
            query=query,
        )
    results = _results(traced, keys, warnings)
    return BlameReport(
        query=query,
        at=name,
        match=match,
        facts=tuple(_blamed(key, traced[key], results) for key in keys),
        warnings=tuple(warnings),
    )


def _search(chain: Sequence[Version], query: str) -> tuple[Match, Mapping[Key, Sequence[Change]]]:
    """Return what became of the facts that are meant, and how they were matched."""
    folded = _folded(query)
    matches: dict[Key, Match] = {}
    exact_found = False

    def wanted(subject: str, prompt: str) -> bool:
        nonlocal exact_found
        text = prompt.replace(PLACEHOLDER, subject, 1)
        if query in (subject, prompt, text):
            matches[subject, prompt] = "exact"
            exact_found = True
            return True
        if exact_found:
            return False
        folded_text, folded_prompt = _folded(text), _folded(prompt)
        if folded not in folded_text and folded not in folded_prompt:
            return False
        same = folded in (_folded(subject), folded_prompt, folded_text)
        matches[subject, prompt] = "case" if same else "part"
        return True

    traced = trace(chain, wanted)
    best: Match = next((one for one in _MATCHES if one in matches.values()), "part")
    return best, {key: changes for key, changes in traced.items() if matches[key] == best}


def _folded(text: str) -> str:
    """Return a text without regard to capitals, nor to whether a letter and its accent are one character or two."""
    return unicodedata.normalize("NFC", text.casefold())


def _results(
    traced: Mapping[Key, Sequence[Change]], keys: Sequence[Key], warnings: list[str]
) -> dict[str, dict[About, FactResult]]:
    """Return what was measured for these facts, by version and fact."""
    facts: dict[str, list[Fact]] = {}
    versions: dict[str, Version] = {}
    for key in keys:
        for change in traced[key]:
            versions[change.version.name] = change.version
            facts.setdefault(change.version.name, []).append(change.fact)
    found: dict[str, dict[About, FactResult]] = {}
    for name, version in versions.items():
        try:
            found[name] = results_of(version, facts[name])
        except ReviverError as error:
            warnings.append(problem_of(error))
    return found


def _blamed(key: Key, changes: Sequence[Change], results: Mapping[str, Mapping[About, FactResult]]) -> BlamedFact:
    last = changes[-1]
    gone = last.what == "taken back"
    return BlamedFact(
        subject=key[0],
        prompt=key[1],
        text=last.fact.text,
        target=None if gone else last.fact.target_new,
        version=None if gone else last.version.name,
        changes=tuple(
            _change(change, results.get(change.version.name, {}).get(about(change.fact))) for change in changes
        ),
    )


def _change(change: Change, result: FactResult | None) -> BlamedChange:
    manifest = change.version.manifest
    return BlamedChange(
        version=change.version.name,
        id=change.version.id,
        created=manifest.created,
        message=manifest.message,
        what=change.what,
        target=change.fact.target_new,
        answer_before=None if result is None else result.before.answer,
        answer_after=None if result is None else result.after.answer,
        probability_before=None if result is None else result.before.probability_new,
        probability_after=None if result is None else result.after.probability_new,
        success=None if result is None else result.success,
    )
