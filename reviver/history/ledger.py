"""What is in force at the end of a chain: which facts, of which version, after all that later versions took back.

A version brings the facts in its facts.jsonl. One made by `revert`, `merge` or `squash` may also take back versions below it, or
single facts of theirs; its manifest names them under `takes_back`, by the version's id, which renumbering leaves alone. Taking
back a version that itself took something back brings that into force again, where it stood before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reviver.errors import ManifestError
from reviver.history.untrusted import DAMAGED_HINT, Fields
from reviver.history.version import Version

if TYPE_CHECKING:
    from reviver.facts.fact import Fact

MADE_FROM_PATCHES = ("revert", "merge", "squash", "adopt")
"""What stands in a manifest as the editor of a version whose patch came from other patches, or from a checkpoint."""

MOST_STEPS = 100_000
"""So many versions may be taken back, or brought back by that, at once; more is a forged history that would keep a reader busy."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFact:
    """A fact as the end of a chain holds it, and the version that set it last."""

    fact: Fact
    version: str


def answer_to(known: Mapping[Key, KnownFact], key: Key) -> str | None:
    """Return the answer in force to a subject and prompt; None where there is none."""
    return known[key].fact.target_new if key in known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """What a version takes back of one below it.

    Attributes:
        version: that version's id.
        facts: the ids of those of its facts that were in force until then.
        whole: nothing of that version is left; what it took back itself is in force again.
    """

    version: str
    facts: tuple[str, ...]
    whole: bool

    def to_record(self) -> dict[str, Any]:
        """Return the form in the manifest."""
        return {"version": self.version, "facts": list(self.facts), "whole": self.whole}


Piece = tuple[str, str]
"""A part of a version that is in force or not: its id and a fact's id; "" for what belongs to no fact of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """The pieces that came out of force and those that came into force again."""

    lost: frozenset[Piece] = frozenset()
    regained: frozenset[Piece] = frozenset()


@dataclass(slots=True, kw_only=True)
class Standing:
    """How much of a version is in force.

    Attributes:
        name: the version's name.
        facts: all its facts, by id.
        takes: what it takes back.
        active: the ids of those that are not taken back; a later version may still answer otherwise.
        gone: it was taken back as a whole.
    """

    name: str
    facts: Mapping[str, Fact]
    takes: tuple[TakenBack, ...]
    active: set[str]
    gone: bool = False


class Ledger:
    """What a chain holds.

    Args:
        chain: oldest first, from the base on.

    Attributes:
        standings: of each version, by id, in the chain's order.
        effects: what each version did to those below it, by id.

    Raises:
        ManifestError, FactsError: a file of facts is missing, damaged or forged, or a version takes back what is not there.
    """

    def __init__(self, chain: Iterable[Version] = ()) -> None:
        self.standings: dict[str, Standing] = {}
        self.effects: dict[str, Flips] = {}
        # What was set for a key, oldest first: when the last is taken back, the one before is in force again.
        self._set: dict[Key, list[tuple[int, Standing, str]]] = {}
        self._count = 0
        for version in chain:
            self.add(version.id, version.name, version.facts(), taken_back(version))

    def add(self, id: str, name: str, facts: Sequence[Fact], takes: Sequence[TakenBack]) -> None:
        """Put a version on top: first what it takes back goes, then its own facts come.

        Raises:
            ManifestError: it takes back what is not there, or what is gone already; the ledger is of no use then.
        """
        touched: list[tuple[Piece, bool]] = []
        for taken in takes:
            below = self.standings.get(taken.version)
            if below is None or not set(taken.facts) <= below.facts.keys() or (taken.whole and below.gone):
                raise ManifestError(f"{name} takes back what it does not stand on", hint=DAMAGED_HINT, version=name)
            touched += self._touch(taken)
        self.effects[id] = self._flips(touched)
        own = {fact.id: fact for fact in facts}
        standing = Standing(name=name, facts=own, takes=tuple(takes), active=set(own))
        self.standings[id] = standing
        for fact in own.values():
            self._count += 1
            self._set.setdefault(fact.key, []).append((self._count, standing, fact.id))

    def take_back(self, taken: TakenBack) -> Flips:
        """Take something back, without a version that does so, and return what that changed."""
        return self._flips(list(self._touch(taken)))

    def _touch(self, taken: TakenBack) -> Iterator[tuple[Piece, bool]]:
        """Take something back, and yield every piece that this touches with whether it was in force."""
        # A list of what is to be done, since versions that take each other back may be piled up higher than calls can be.
        waiting = [(False, taken)]
        for _ in range(MOST_STEPS):
            if not waiting:
                return
            gives, one = waiting.pop()
            standing = self.standings[one.version]
            for fact in one.facts:
                yield (one.version, fact), fact in standing.active
            if gives:
                standing.active |= set(one.facts)
            else:
                standing.active -= set(one.facts)
            if one.whole and standing.gone == gives:
                yield (one.version, ""), not standing.gone
                standing.gone = not gives
                waiting += [(not gives, below) for below in reversed(standing.takes)]
        raise ManifestError("versions take each other back without an end", hint=DAMAGED_HINT, version=taken.version)

    def _flips(self, touched: Iterable[tuple[Piece, bool]]) -> Flips:
        before: dict[Piece, bool] = {}
        for piece, was in touched:
            before.setdefault(piece, was)
        return Flips(
            lost=frozenset(piece for piece, was in before.items() if was and not self.is_live(piece)),
            regained=frozenset(piece for piece, was in before.items() if not was and self.is_live(piece)),
        )

    def is_live(self, piece: Piece) -> bool:
        """Tell whether a piece is in force; a later version may still answer otherwise."""
        standing = self.standings[piece[0]]
        return piece[1] in standing.active if piece[1] else not standing.gone

    def pieces(self, id: str) -> frozenset[Piece]:
        """Return the pieces of a version, in force or not."""
        return frozenset(((id, ""), *((id, fact) for fact in self.standings[id].facts)))

    def facts_of(self, pieces: Iterable[Piece]) -> list[Fact]:
        """Return the facts among some pieces."""
        return [self.standings[id].facts[fact] for id, fact in sorted(pieces) if fact]

    def in_force(self) -> dict[Key, KnownFact]:
        """Return the facts in force, by subject and prompt, in the order in which they were set."""
        last = []
        for entries in self._set.values():
            active = [entry for entry in entries if entry[2] in entry[1].active]
            last += active[-1:]
        found = [(standing.facts[id], standing.name) for _, standing, id in sorted(last, key=lambda entry: entry[0])]
        return {fact.key: KnownFact(fact=fact, version=name) for fact, name in found}

    def set_by(self, versions: Iterable[Version]) -> dict[Key, KnownFact]:
        """Return the facts in force that these versions set."""
        names = {version.name for version in versions}
        return {key: known for key, known in self.in_force().items() if known.version in names}

    def stands_as(self, other: Ledger) -> bool:
        """Tell whether every piece of this ledger's versions is in force here as it is in another ledger."""
        pieces = (piece for id in self.standings for piece in self.pieces(id))
        return all(self.is_live(piece) == other.is_live(piece) for piece in pieces)

    def lost_until(self, later: Ledger) -> list[TakenBack]:
        """Return what must be taken back so that this ledger's versions stand as they do in `later`; does it here as well.

        Args:
            later: of a chain that begins with this one's.
        """
        lost = []
        # From the newest on: taking back one that took others back brings those into force first.
        for id in reversed(self.standings):
            here, there = self.standings[id], later.standings[id]
            taken = TakenBack(
                version=id,
                facts=tuple(fact for fact in here.facts if fact in here.active - there.active),
                whole=there.gone and not here.gone,
            )
            if taken.facts or taken.whole:
                lost.append(taken)
                self.take_back(taken)
        return lost


def known_facts(chain: Iterable[Version]) -> dict[Key, KnownFact]:
    """Return the facts that a chain holds at its end, by subject and prompt; a later version's answer wins.

    Raises:
        ManifestError, FactsError: as `Ledger`.
    """
    return Ledger(chain).in_force()


def taken_back(version: Version) -> tuple[TakenBack, ...]:
    """Return what a version takes back of those below it, as its manifest says.

    Raises:
        ManifestError: the manifest says it in a form that is none.
    """
    editor = version.manifest.editor
    if editor.name not in MADE_FROM_PATCHES or "takes_back" not in editor.settings:
        return ()
    where = f"{version.name}/manifest.json: takes_back"
    entries = Fields(dict(editor.settings), where).items("takes_back")
    return tuple(_read_taken_back(entry, where) for entry in entries)


def _read_taken_back(value: object, where: str) -> TakenBack:
    fields = Fields(value, where)
    fields.only(("version", "facts", "whole"))
    ids = fields.items("facts")
    if not all(isinstance(id, str) for id in ids) or len(set(ids)) < len(ids):
        raise fields.wrong("facts", "a list of ids, each once")
    return TakenBack(version=fields.sha256("version"), facts=tuple(ids), whole=fields.boolean("whole"))
