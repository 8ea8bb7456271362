"""What became of facts along a chain, against the ledger of every shorter chain; and a history that is made to keep it busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import workspaces
from hypothesis import given, settings
from hypothesis import strategies as st

from reviver.errors import ManifestError
from reviver.facts.fact import Fact
from reviver.history.ledger import Ledger, TakenBack
from reviver.history.tracing import keys_taken_back, trace
from reviver.history.version import Version


@dataclass(frozen=True)
class Made:
    """As much of a version as tracing looks at."""

    id: str
    name: str
    batch: Sequence[Fact]
    takes: Sequence[TakenBack]
    withheld: bool = False

    @property
    def manifest(self) -> Any:
        entries = [one.to_record() for one in self.takes]
        return SimpleNamespace(editor=SimpleNamespace(name="revert", settings={"takes_back": entries}))

    def find_facts(self, wanted: Callable[[str, str], bool]) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.batch if wanted(fact.subject, fact.prompt))

    def facts(self) -> tuple[Fact, ...]:
        return tuple(self.batch)


def version_id(number: int) -> str:
    return f"{number:064x}"


@st.composite
def chains(draw: st.DrawFn) -> list[Made]:
    """Return a chain in which versions set facts about few subjects and take back what is in force."""
    chain: list[Made] = []
    ledger = Ledger()
    for number in range(1, draw(st.integers(1, 12)) + 1):
        subjects = draw(st.lists(st.sampled_from("ABCD"), unique=True, max_size=3))
        facts = [workspaces.make_fact(subject, draw(st.sampled_from("xyz"))) for subject in subjects]
        standing = {id: one for id, one in ledger.standings.items() if not one.gone}
        taken = draw(st.lists(st.sampled_from(sorted(standing)), unique=True, max_size=2)) if standing else []
        takes = []
        for id in taken:
            active = sorted(standing[id].active)
            whole = draw(st.booleans())
            takes.append(TakenBack(version=id, facts=tuple(active if whole else active[:1]), whole=whole))
        try:
            ledger.add(version_id(number), f"v{number}", facts, takes)
        except ManifestError:
            break  # Taking back the first took back the second as well.
        chain.append(Made(version_id(number), f"v{number}", facts, takes))
    return chain


def in_force(chain: Sequence[Made], wanted: str) -> dict[str, tuple[str, str]]:
    """Return target and version by subject, from the facts of the whole chain."""
    ledger = Ledger()
    for one in chain:
        ledger.add(one.id, one.name, one.batch, one.takes)
    return {
        key[0]: (known.fact.target_new, known.version) for key, known in ledger.in_force().items() if key[0] in wanted
    }


@settings(max_examples=150, deadline=None)
@given(chain=chains(), wanted=st.sampled_from(["A", "AB", "ABCD"]))
def test_a_trace_tells_every_step_and_nothing_else(chain: list[Made], wanted: str) -> None:
    traced = trace(cast(list[Version], chain), lambda subject, prompt: subject in wanted)
    for subject in wanted:
        expected = []
        for length in range(1, len(chain) + 1):
            last = chain[length - 1]
            old = in_force(chain[: length - 1], wanted).get(subject)
            new = in_force(chain[:length], wanted).get(subject)
            if any(fact.subject == subject for fact in last.batch):
                assert new is not None and new[1] == last.name
                expected.append(
                    (last.name, "set" if taken_first(chain, length, subject) is None else "changed", new[0])
                )
            elif old != new:
                expected.append((last.name, "taken back" if new is None else "restored", (new or old or ("", ""))[0]))
        found = [(one.version.name, one.what, one.fact.target_new) for one in traced.get((subject, "{} lies in"), [])]
        assert found == expected


def taken_first(chain: Sequence[Made], length: int, subject: str) -> tuple[str, str] | None:
    """Return what is in force before a version's own facts come. What it takes back goes first, and is told as a change."""
    return in_force(chain[: length - 1], subject).get(subject)


def test_versions_that_take_each_other_back_are_followed_once_each() -> None:
    """Each takes back the two below it: along all ways there would be more steps than anybody could wait for."""
    chain: list[Made] = []
    for number in range(1, 101):
        takes = [TakenBack(version=one.id, facts=(one.batch[0].id,), whole=True) for one in chain[-2:]]
        fact = workspaces.make_fact(f"S{number}", "x")
        chain.append(Made(version_id(number), f"v{number}", (fact,), takes, withheld=number == 3))
    keys = keys_taken_back(cast(list[Version], chain), cast(Version, chain[-1]))
    assert keys == {one.batch[0].key for one in chain[:-1] if not one.withheld}


def test_a_history_that_takes_back_what_is_gone_is_refused_at_once() -> None:
    """Each version taking back all below it would double the work of reading it with every version."""
    ledger = Ledger()
    with pytest.raises(ManifestError, match="takes back what it does not stand on"):
        for number in range(1, 200):
            takes = [TakenBack(version=version_id(below), facts=(), whole=True) for below in range(1, number)]
            ledger.add(version_id(number), f"v{number}", (), takes)
