"""Where two branches contradict each other: facts that both changed since their common ancestor, to different ends.

Both may have set a fact; or one took back, so that an older answer or none is in force, what the other answered anew. That both
took back parts of their common history is none: what either took back is gone from the merge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reviver.history.branches import Branches
from reviver.history.ledger import Key, KnownFact, Ledger, answer_to
from reviver.history.tracing import trace
from reviver.history.version import Version

_Known = Mapping[Key, KnownFact]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """A fact that both branches changed, to different ends.

    Attributes:
        subject, prompt: the fact.
        ours: the answer in force in A; None where it was taken back.
        ours_version: the version that set it, or took it back.
        theirs, theirs_version: the same of B.
    """

    subject: str
    prompt: str
    ours: str | None
    ours_version: str
    theirs: str | None
    theirs_version: str


def contradictions(branches: Branches, chain_b: Sequence[Version]) -> list[Contradiction]:
    """Return the facts on which two branches contradict each other.

    Args:
        branches: A and B.
        chain_b: the whole of B, oldest first.

    Raises:
        ManifestError, FactsError: a version is damaged.
    """
    before = Ledger(branches.common).in_force()
    ours, theirs = branches.ours.ledger.in_force(), Ledger(chain_b).in_force()
    common = {version.name for version in branches.common}

    def taken_back(changed: _Known, now: _Known, more: frozenset[Key] = frozenset()) -> Iterator[Key]:
        """Yield what one branch set where the other is back at an older answer, or none, which it was not at the ancestor."""
        for key, known in changed.items():
            other = now.get(key)
            older = other is None or other.version in common
            moved = other != before.get(key) or key in more
            if older and moved and answer_to(now, key) != known.fact.target_new:
                yield key

    clashing = {
        *taken_back(branches.theirs.set_by, ours, _taken_out_of_merges(branches, chain_b)),
        *taken_back(branches.ours.set_by, theirs),
    }
    both_set = branches.set_differently()
    keys = [*both_set, *sorted(clashing)]
    moved_a = _movers(branches.chain_a, keys, branches.ours.set_by)
    moved_b = _movers(chain_b, keys, branches.theirs.set_by)
    return [
        Contradiction(
            subject=key[0],
            prompt=key[1],
            ours=answer_to(ours, key),
            ours_version=moved_a[key],
            theirs=answer_to(theirs, key),
            theirs_version=moved_b[key],
        )
        for key in keys
    ]


def _taken_out_of_merges(branches: Branches, chain_b: Sequence[Version]) -> frozenset[Key]:
    """Return what one branch had from the other by an earlier merge, and A no longer says."""
    kept = {version.id for version in branches.theirs.versions}
    met = {
        fact.key for version in chain_b[len(branches.common) :] if version.id not in kept for fact in version.facts()
    }
    standings = branches.ours.ledger.standings
    once = {fact.key for version in branches.ours.versions for fact in standings[version.id].facts.values()}
    return frozenset(met & once - branches.ours.set_by.keys())


def _movers(chain: Sequence[Version], keys: Collection[Key], set_by: _Known) -> dict[Key, str]:
    """Return the version that set each of these facts, or took it back."""
    moved = {key: set_by[key].version for key in keys if key in set_by}
    lost = set(keys) - moved.keys()
    traced = trace(chain, lambda subject, prompt: (subject, prompt) in lost) if lost else {}
    return moved | {key: changes[-1].version.name for key, changes in traced.items()}
