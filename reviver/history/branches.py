"""Two branches above their common ancestor: what each added and took back, and what one needs to have all of the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from reviver.errors import WorkspaceError
from reviver.facts.fact import Fact
from reviver.history.algebra import Contribution, compose
from reviver.history.chain import common_length
from reviver.history.contributions import all_pieces, contribution
from reviver.history.ledger import Key, Ledger, Piece, TakenBack
from reviver.history.manifest import BASE_NAME
from reviver.history.merged import ChainOf, contents, not_in
from reviver.history.untrusted import shown
from reviver.history.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Union:
    """What one branch needs to have everything of the other.

    Attributes:
        parts: what adds up to the patch.
        facts: what it brings.
        takes: what it takes back of the first branch.
        sources: the versions that the patch is made from.
    """

    parts: tuple[Contribution, ...]
    facts: tuple[Fact, ...]
    takes: tuple[TakenBack, ...]
    sources: tuple[Version, ...]


class Side:
    """One branch above the ancestor.

    Args:
        ledger: of its whole chain.
        versions: its own, oldest first.

    Attributes:
        versions: its own versions, oldest first.
        set_by: the facts that they set and that are in force at its end.
        total: the sum of their patches.
    """

    def __init__(self, ledger: Ledger, versions: Sequence[Version]) -> None:
        self.ledger = ledger
        self.versions = tuple(versions)
        self.set_by = ledger.set_by(versions)
        parts = [(version, contribution(version, ledger)) for version in versions]
        # Facts are told apart here as long as they can be; whether the new patch keeps them so is another matter.
        self._apart = compose([part for _, part in parts if part.labels is not None], bounded=False).whole
        self._others = [(version, part) for version, part in parts if part.labels is None]
        if self._apart.labels is None:
            self._apart, self._others = compose([]).whole, parts

    @property
    def parts(self) -> tuple[Contribution, ...]:
        """What adds up to the branch."""
        return (self._apart, *(part for _, part in self._others))

    @property
    def total(self) -> Contribution:
        """The branch as one contribution."""
        return compose(self.parts, bounded=False).whole

    def without(self, keys: Collection[Key]) -> tuple[Contribution, ...]:
        """Return what adds up to the branch less all that it does for some facts.

        Raises:
            WorkspaceError: these facts are not apart from others.
        """
        self._check_apart(keys)
        rest = self._apart.chosen(lambda label: label is None or not label.own or label.key not in keys)
        return (rest, *(part for _, part in self._others))

    def only(self, keys: Collection[Key]) -> Contribution:
        """Return what the branch does for some facts; raises as `without`."""
        self._check_apart(keys)
        return self._apart.chosen(lambda label: label is not None and label.own and label.key in keys)

    def facts_about(self, keys: Collection[Key]) -> list[TakenBack]:
        """Return the branch's own facts about some keys, as they would be taken back."""
        found = []
        for version in self.versions:
            standing = self.ledger.standings[version.id]
            facts = tuple(id for id, fact in standing.facts.items() if id in standing.active and fact.key in keys)
            if facts:
                found.append(TakenBack(version=version.id, facts=facts, whole=False))
        return found

    def _check_apart(self, keys: Collection[Key]) -> None:
        for version, _ in self._others:
            effect = self.ledger.effects[version.id]
            pieces = self.ledger.pieces(version.id) | effect.lost | effect.regained
            about = {fact.key for fact in self.ledger.facts_of(pieces)}
            if about & set(keys):
                raise _not_apart(version.name, min(about & set(keys)))
        for key in sorted(keys):
            if not self._apart.holds(key):
                raise _not_apart(self.set_by[key].version, key)


class Branches:
    """Two chains, A and B, with a common beginning.

    Args:
        chain_a: of A, oldest first.
        chain_b: of B.
        chain_of: finds the chains of what was merged or squashed.

    Attributes:
        common: the versions that both stand on.
        ours: A above them.
        theirs: B above them, without what is in A already by an earlier merge.
        ancestor: the name of the last common version; `v0` is the base.

    Raises:
        ManifestError, FactsError: a version is damaged.
        WorkspaceError: a part of what a merge or squash of B holds is in A, and a part is not.
    """

    def __init__(self, chain_a: Sequence[Version], chain_b: Sequence[Version], chain_of: ChainOf) -> None:
        count = common_length(chain_a, chain_b)
        self.chain_a, self.common = tuple(chain_a), tuple(chain_b[:count])
        self.ancestor = self.common[-1].name if self.common else BASE_NAME
        theirs = not_in(contents(chain_a, chain_of), chain_b[count:], self.common, chain_of)
        kept = {version.id for version in theirs}
        # What B set before it was merged here the last time: where A still says so, B's later answer is no contradiction.
        self._merged_before = {
            fact.key: fact.target_new
            for version in chain_b[count:]
            if version.id not in kept
            for fact in version.facts()
        }
        self.ours = Side(Ledger(chain_a), chain_a[count:])
        self.theirs = Side(Ledger((*self.common, *theirs)), theirs)

    def set_differently(self) -> list[Key]:
        """Return the facts that both set, and answer differently; not what the other side had from here by an earlier merge."""
        ours = self.ours.set_by
        return [
            key
            for key, one in self.theirs.set_by.items()
            if key in ours and ours[key].fact.target_new not in (one.fact.target_new, self._merged_before.get(key))
        ]

    def agreeing(self) -> int:
        """Return how many facts both set alike."""
        ours, theirs = self.ours.set_by, self.theirs.set_by
        return sum(ours[key].fact.target_new == theirs[key].fact.target_new for key in ours.keys() & theirs.keys())

    def union(self, losers: Collection[Key] = (), *, a_wins: bool = True) -> Union:
        """Return what A needs to have everything of B.

        Args:
            losers: the keys of the facts that contradict each other.
            a_wins: B's of these facts are left out; else A's are taken back.

        Raises:
            WorkspaceError: facts that lose, or that both branches took back, are not apart from others.
        """
        facts = tuple(known.fact for key, known in self.theirs.set_by.items() if not a_wins or key not in losers)
        parts, takes, sources = list(self.theirs.parts), self._taken_by_b(), list(self.theirs.versions)
        if losers and a_wins:
            parts = list(self.theirs.without(losers))
        elif losers:
            parts.append(self.ours.only(losers).negated())
            takes += self.ours.facts_about(losers)
            sources += self.ours.versions
        for version, part in self._done_twice():
            parts.append(part)
            sources.append(version)
        return Union(parts=tuple(parts), facts=facts, takes=tuple(takes), sources=tuple(sources))

    def _taken_by_b(self) -> list[TakenBack]:
        """Return what B took back of the common history and A did not."""
        merged, wanted = Ledger(self.chain_a), self._agreed()
        takes = []
        for one in Ledger(self.common).lost_until(self.theirs.ledger):
            here = merged.standings[one.version]
            left = TakenBack(
                version=one.version,
                facts=tuple(id for id in one.facts if id in here.active),
                whole=one.whole and not here.gone,
            )
            if left.facts or left.whole:
                takes.append(left)
                merged.take_back(left)
        if any(merged.is_live(piece) != live for piece, live in wanted.items()):
            raise WorkspaceError(
                "both branches took back, and brought back, the same versions in different ways",
                hint="take one of these steps back on its own branch with `reviver revert`, then merge",
            )
        return takes

    def _agreed(self) -> dict[Piece, bool]:
        """Return which pieces of the common history shall be in force: what either branch changed counts."""
        before, ours, theirs = Ledger(self.common), self.ours.ledger, self.theirs.ledger
        agreed = {}
        for version in self.common:
            for piece in before.pieces(version.id):
                was, a, b = before.is_live(piece), ours.is_live(piece), theirs.is_live(piece)
                agreed[piece] = a if a == b else not was
        return agreed

    def _done_twice(self) -> list[tuple[Version, Contribution]]:
        """Return what the sum of both branches lacks, or has once too often, because both did it to the common history."""
        before, ours, theirs = Ledger(self.common), self.ours.ledger, self.theirs.ledger
        pieces = [piece for version in self.common for piece in before.pieces(version.id)]
        changed = [one for one in pieces if ours.is_live(one) == theirs.is_live(one) != before.is_live(one)]
        lost = all_pieces([one for one in changed if before.is_live(one)], self.common, before)
        regained = all_pieces([one for one in changed if not before.is_live(one)], self.common, before)
        return [*lost, *((version, part.negated()) for version, part in regained)]


def _not_apart(version: str, key: Key) -> WorkspaceError:
    return WorkspaceError(
        f"the fact about `{shown(key[0])}` cannot be left out: the patch of {version} does not keep its facts apart",
        hint=f"drop {version} with `reviver revert {version}` on its own branch first, or prefer the other one",
        version=version,
    )
