"""What became of a fact along a chain: which version set it, which changed it again, which took it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reviver.facts.fact import Fact
from reviver.history.ledger import Key, KnownFact, Ledger, TakenBack, taken_back
from reviver.history.version import Version

What = Literal["set", "changed", "taken back", "restored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one version did to one fact.

    Attributes:
        what: `set` where nothing was in force before; `changed` where the version answers anew (with the same words or with
            others); `taken back` where nothing is in force after; `restored` where an older answer is in force again.
        version: the version that did it.
        fact: what is in force after, or what was taken back.
    """

    what: What
    version: Version
    fact: Fact


def trace(chain: Sequence[Version], wanted: Callable[[str, str], bool]) -> dict[Key, list[Change]]:
    """Return what each version did to the facts for which `wanted(subject, prompt)` holds, by fact, oldest first.

    Versions whose facts are withheld are passed over.

    Raises:
        ManifestError, FactsError: a file of facts is missing, damaged or forged, or a version takes back what is not there.
    """
    ledger = Ledger()
    now: dict[Key, KnownFact] = {}
    changes: dict[Key, list[Change]] = {}
    for version in chain:
        facts = () if version.withheld else version.find_facts(wanted)
        takes = known_part(ledger, taken_back(version))
        before = dict(now) if takes else now
        ledger.add(version.id, version.name, facts, takes)
        if takes:
            now = ledger.in_force()
        own = {fact.key for fact in facts}
        for key, change in _moved(before, now, version) if takes else ():
            if key not in own:
                changes.setdefault(key, []).append(change)
        for fact in facts:
            what: What = "changed" if fact.key in before else "set"
            changes.setdefault(fact.key, []).append(Change(what=what, version=version, fact=fact))
            now[fact.key] = KnownFact(fact=fact, version=version.name)
    return changes


def known_facts_among(chain: Sequence[Version], facts: Mapping[str, Sequence[Fact]]) -> dict[Key, KnownFact]:
    """Return those of these facts that are in force at the end of a chain.

    Args:
        chain: oldest first.
        facts: some facts of each version, by its name; all that any version holds about the same subject and prompt.

    Raises:
        ManifestError: a version takes back what is not there.
    """
    ledger = Ledger()
    for version in chain:
        ledger.add(version.id, version.name, facts[version.name], known_part(ledger, taken_back(version)))
    return ledger.in_force()


def keys_taken_back(chain: Sequence[Version], version: Version) -> set[Key]:
    """Return the facts whose standing `version`, one of the chain, may have changed by taking back what lies below it.

    Raises:
        ManifestError, FactsError: a file of facts is missing, damaged or forged.
    """
    by_id = {one.id: one for one in chain}
    # By version the ids of the facts in question. Versions may take each other back along many ways: each is followed once.
    facts: dict[str, set[str]] = {}
    followed: set[str] = set()
    waiting = list(taken_back(version))
    while waiting:
        taken = waiting.pop()
        if taken.version not in by_id:
            continue
        facts.setdefault(taken.version, set()).update(taken.facts)
        if taken.whole and taken.version not in followed:
            # What a version took back is in force again once it is taken back itself.
            followed.add(taken.version)
            waiting += taken_back(by_id[taken.version])
    return {
        fact.key
        for id, ids in facts.items()
        if ids and not by_id[id].withheld
        for fact in by_id[id].facts()
        if fact.id in ids
    }


def known_part(ledger: Ledger, takes: Sequence[TakenBack]) -> list[TakenBack]:
    """Return what a version takes back of the facts that the ledger holds, which may be fewer than the version brought."""
    return [
        replace(one, facts=tuple(id for id in one.facts if id in ledger.standings[one.version].facts))
        for one in takes
        if one.version in ledger.standings
    ]


def _moved(before: dict[Key, KnownFact], after: dict[Key, KnownFact], version: Version) -> Iterator[tuple[Key, Change]]:
    """Yield what differs between two states of a ledger where the later version brings no fact of its own."""
    for key, known in before.items():
        if key not in after:
            yield key, Change(what="taken back", version=version, fact=known.fact)
    for key, known in after.items():
        if before.get(key) != known:
            yield key, Change(what="restored", version=version, fact=known.fact)
