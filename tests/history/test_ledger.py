"""What is in force after versions took one another back, and manifests that say so wrongly."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import workspaces

from reviver.errors import ManifestError
from reviver.facts.fact import Fact
from reviver.history.ledger import Ledger, TakenBack, known_facts, taken_back
from reviver.history.manifest import ManifestEditor
from reviver.history.version import Version
from reviver.history.workspace import Workspace


def id_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def took(name: str, *facts: Fact, whole: bool = False) -> TakenBack:
    return TakenBack(version=id_of(name), facts=tuple(fact.id for fact in facts), whole=whole)


def answers(ledger: Ledger) -> dict[str, str]:
    return {key[0]: f"{known.fact.target_new} ({known.version})" for key, known in ledger.in_force().items()}


ROME, CHILE = workspaces.make_fact("Rome", "Peru"), workspaces.make_fact("Rome", "Chile")
OSLO = workspaces.make_fact("Oslo", "Italy")


@pytest.fixture
def ledger() -> Ledger:
    """v1 sets two facts, v2 changes one."""
    made = Ledger()
    made.add(id_of("v1"), "v1", [ROME, OSLO], [])
    made.add(id_of("v2"), "v2", [CHILE], [])
    return made


def test_an_older_answer_returns_and_goes_again(ledger: Ledger) -> None:
    assert answers(ledger) == {"Oslo": "Italy (v1)", "Rome": "Chile (v2)"}
    ledger.add(id_of("v3"), "v3", [], [took("v2", CHILE, whole=True)])
    assert answers(ledger) == {"Rome": "Peru (v1)", "Oslo": "Italy (v1)"}
    effect = ledger.effects[id_of("v3")]
    assert effect.lost == {(id_of("v2"), CHILE.id), (id_of("v2"), "")} and not effect.regained
    ledger.add(id_of("v4"), "v4", [], [took("v1", ROME)])
    assert answers(ledger) == {"Oslo": "Italy (v1)"}
    # To take a revert back is to bring back what it took, where it stood.
    ledger.add(id_of("v5"), "v5", [], [took("v3", whole=True)])
    assert answers(ledger) == {"Oslo": "Italy (v1)", "Rome": "Chile (v2)"}
    assert ledger.effects[id_of("v5")].regained == effect.lost
    ledger.add(id_of("v6"), "v6", [], [took("v5", whole=True)])
    assert answers(ledger) == {"Oslo": "Italy (v1)"}
    ledger.add(id_of("v7"), "v7", [], [took("v4", whole=True)])
    assert answers(ledger) == {"Rome": "Peru (v1)", "Oslo": "Italy (v1)"}


def test_a_tower_of_reverts_has_no_height(ledger: Ledger) -> None:
    ledger.add(id_of("r0"), "v3", [], [took("v2", CHILE, whole=True)])
    for number in range(1, 1201):
        ledger.add(id_of(f"r{number}"), "v4", [], [took(f"r{number - 1}", whole=True)])
    assert answers(ledger)["Rome"] == "Peru (v1)"
    ledger.take_back(took("r1200", whole=True))
    assert answers(ledger)["Rome"] == "Chile (v2)"


def test_the_way_from_one_state_to_another(ledger: Ledger) -> None:
    later = Ledger()
    later.add(id_of("v1"), "v1", [ROME, OSLO], [])
    later.add(id_of("v2"), "v2", [CHILE], [])
    later.add(id_of("v3"), "v3", [], [took("v2", CHILE, whole=True), took("v1", OSLO)])
    assert not ledger.stands_as(later)
    assert ledger.lost_until(later) == [took("v2", CHILE, whole=True), took("v1", OSLO)]
    assert ledger.stands_as(later)


def test_what_is_gone_is_not_taken_again(ledger: Ledger) -> None:
    ledger.add(id_of("v3"), "v3", [], [took("v2", CHILE, whole=True)])
    ledger.add(id_of("v4"), "v4", [], [took("v3", whole=True)])
    # v3 is back once v4 is taken back, so that both can go in one step, in this order.
    ledger.add(id_of("v5"), "v5", [], [took("v4", whole=True), took("v3", whole=True)])
    assert answers(ledger)["Rome"] == "Chile (v2)"
    with pytest.raises(ManifestError, match="v6 takes back what it does not stand on"):
        ledger.add(id_of("v6"), "v6", [], [took("v3", whole=True), took("v4", whole=True)])


def test_a_forged_history_keeps_nobody_busy(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reviver.history.ledger.MOST_STEPS", 50)
    ledger.add(id_of("r0"), "v3", [], [took("v2", CHILE, whole=True)])
    with pytest.raises(ManifestError, match="take each other back without an end"):
        for number in range(1, 100):
            ledger.add(id_of(f"r{number}"), "v4", [], [took(f"r{number - 1}", whole=True)])


@pytest.mark.parametrize(
    ("takes", "text"),
    [
        ([took("v9", whole=True)], "v3 takes back what it does not stand on"),
        ([took("v2", OSLO)], "v3 takes back what it does not stand on"),
        ([took("v3", whole=True)], "v3 takes back what it does not stand on"),
    ],
)
def test_what_is_not_below_is_refused(ledger: Ledger, takes: list[TakenBack], text: str) -> None:
    before = answers(ledger)
    with pytest.raises(ManifestError, match=text):
        ledger.add(id_of("v3"), "v3", [], takes)
    assert answers(ledger) == before


def edited(version: Version, name: str, settings: dict[str, Any]) -> Version:
    editor = ManifestEditor(name=name, reference_url="", settings=settings)
    return replace(version, manifest=replace(version.manifest, editor=editor))


@pytest.mark.parametrize(
    "takes",
    [
        "all",
        [1],
        [{"version": "v1", "facts": [], "whole": True}],
        [{"version": id_of("v1"), "facts": None, "whole": True}],
        [{"version": id_of("v1"), "facts": [1], "whole": True}],
        [{"version": id_of("v1"), "facts": [], "whole": 1}],
        [{"version": id_of("v1"), "facts": []}],
        [{"version": id_of("v1"), "facts": [], "whole": True, "more": 1}],
    ],
)
def test_a_manifest_that_says_it_wrongly(chained: Workspace, takes: object) -> None:
    version = chained.version("v1")
    with pytest.raises(ManifestError, match="takes_back"):
        taken_back(edited(version, "revert", {"takes_back": takes}))
    # An editor of somebody else's may call its settings what it likes.
    assert taken_back(edited(version, "memit", {"takes_back": takes})) == ()
    assert taken_back(edited(version, "revert", {})) == ()


def test_facts_of_a_chain_on_disk(chained: Workspace) -> None:
    found = {key[0]: known.version for key, known in known_facts(chained.chain("v2")).items()}
    assert found == {"Oslo": "v1", "Rome": "v2", "Lima": "v2"} and next(iter(found)) == "Oslo"
