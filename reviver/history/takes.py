"""Whether what versions take back is there to be taken: a chain in which it is not can be built upon no more.

The manifest's id covers what a version takes back, so a forged or faulty `takes_back` hashes as well as any. What those who read
the ledger would refuse is told here, of whole histories, and without reading more facts than somebody takes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from reviver.errors import ManifestError, ReviverError
from reviver.history.ledger import Ledger, TakenBack, taken_back
from reviver.history.manifest import BASE_NAME
from reviver.history.untrusted import problem_of
from reviver.history.version import Version

if TYPE_CHECKING:
    from reviver.facts.fact import Fact

Facts = Mapping[str, Sequence["Fact"] | None]


def branch_tips(versions: Mapping[str, Version]) -> Iterator[list[Version]]:
    """Yield the chain of every version on which no other stands, oldest first; none that does not reach the base.

    Args:
        versions: by name; each has a higher number than its parent.
    """
    parents = {version.parent for version in versions.values()}
    for name in versions:
        if name in parents:
            continue
        chain = []
        below = name
        while below in versions:
            chain.append(versions[below])
            below = versions[below].parent
        if below == BASE_NAME:
            yield chain[::-1]


def unfounded_takes(chains: Iterable[Sequence[Version]]) -> dict[str, str]:
    """Return what is wrong with what versions take back, by the version's id.

    One ledger is kept for each chain, so that the cost grows with their lengths and not with the squares of these. Where
    facts are withheld or damaged, it is not asked whether a version ever held the facts that are taken back of it. Of
    several wrong versions of a chain only the first is told: what stands above it cannot be judged.

    Args:
        chains: each oldest first, from the base on.
    """
    chains = list(chains)
    facts = _facts_taken(chains)
    problems: dict[str, str] = {}
    for chain in chains:
        ledger = Ledger()
        for version in chain:
            if version.id in problems:
                break
            try:
                takes = _judged(taken_back(version), facts)
                ledger.add(version.id, version.name, facts.get(version.id) or (), takes)
            except ManifestError as error:
                problems[version.id] = problem_of(error)
                break
    return problems


def _facts_taken(chains: Sequence[Sequence[Version]]) -> Facts:
    """Return the facts of every version of which single facts are taken back, by id; None where they cannot be read."""
    versions = {version.id: version for chain in chains for version in chain}
    facts: dict[str, Sequence[Fact] | None] = {}
    for version in versions.values():
        try:
            takes = taken_back(version)
        except ManifestError:
            continue  # Told of the version itself.
        for one in takes:
            if one.facts and one.version in versions and one.version not in facts:
                facts[one.version] = _facts_of(versions[one.version])
    return facts


def _facts_of(version: Version) -> Sequence[Fact] | None:
    try:
        return None if version.withheld else version.facts()
    except ReviverError:
        return None  # Told of the file of facts.


def _judged(takes: Sequence[TakenBack], facts: Facts) -> list[TakenBack]:
    """Return what can be judged of what is taken back: no single facts of a version whose facts are not at hand."""
    return [replace(one, facts=()) if facts.get(one.version, ()) is None else one for one in takes]
