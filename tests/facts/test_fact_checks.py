"""Facts looked at together: repetitions, contradictions, ids, and what a round is told."""

from __future__ import annotations

import hashlib

import pytest

from reviver.errors import FactsError
from reviver.facts import fact as fact_module
from reviver.facts.checks import already_set, already_set_warning, shared_warning, subjects_shared
from reviver.facts.fact import Fact
from reviver.facts.reader import read_facts


def fact(subject: str, target_new: str, prompt: str = "{} is", **fields: object) -> Fact:
    return Fact(
        **({"id": subject + target_new, "prompt": prompt, "subject": subject, "target_new": target_new} | fields)
    )


def test_exact_duplicates_are_dropped_and_counted(write, record) -> None:
    # The same fact, once with the subject in the prompt: what counts is the fact, not how it is written.
    records = [record(id="a"), record(subject="Ilk"), record(id="b", prompt="The capital of Asel is"), record(id="c")]
    read = read_facts(write(records))
    assert [one.subject for one in read.facts] == ["Asel", "Ilk"]
    assert read.facts[0].id == "a"
    assert read.duplicates == 2
    assert read.warnings == ("2 duplicates dropped (the first on line 3, of line 1)",)


def test_two_targets_are_refused_with_both_lines(write, record, problems_of) -> None:
    path = write([record(), record(subject="Ilk"), record(prompt="The capital of Asel is", target_new="Ort"), record()])
    (problem,) = problems_of(path)
    assert problem.line == 3
    assert problem.message == '"The capital of Asel is" gets the target "Ort" and on line 1 "Hask"'


def test_hint_names_the_option_where_only_contradictions_are_wrong(write, record) -> None:
    with pytest.raises(FactsError) as caught:
        read_facts(write([record(), record(target_new="Ort")]))
    assert "--on-conflict last" in caught.value.hint
    with pytest.raises(FactsError) as caught:
        read_facts(write([record(), record(target_new="Ort"), {}]))
    assert "--skip-invalid" in caught.value.hint


def test_last_target_stands_at_its_own_place(write, record) -> None:
    records = [
        record(id=1),
        record(subject="Ilk"),
        record(id=1, target_new="Ort"),
        record(subject="Ruan"),
        record(id=3),
    ]
    read = read_facts(write(records), on_conflict="last")
    assert [(one.subject, one.target_new, one.id) for one in read.facts][1:] == [("Ruan", "Hask", read.facts[1].id),
                                                                                ("Asel", "Hask", "3")]  # fmt: skip
    assert read.facts[0].subject == "Ilk"
    assert read.duplicates == 0
    assert read.warnings == ("2 facts replaced by a later target (the first on line 1, by line 3)",)


def test_setting_aside_keeps_the_first_of_two_targets(write, record) -> None:
    read = read_facts(write([record(), record(target_new="Ort"), record(subject="Ilk")]), skip_invalid=True)
    assert [(one.subject, one.target_new) for one in read.facts] == [("Asel", "Hask"), ("Ilk", "Hask")]
    assert [one.line for one in read.rejected] == [2]


def test_last_goes_before_setting_aside(write, record) -> None:
    read = read_facts(write([record(), record(target_new="Ort")]), skip_invalid=True, on_conflict="last")
    assert [one.target_new for one in read.facts] == ["Ort"] and not read.rejected


def test_one_id_for_two_facts_is_refused(write, record, problems_of) -> None:
    path = write(
        [
            record(id="a"),
            record(id=7, subject="Ilk"),
            record(id="7", subject="Ruan"),
            record(case_id="a", subject="Ort"),
        ]
    )
    first, second = problems_of(path)
    assert (first.line, first.message) == (3, 'the id "7" belongs to another fact, on line 2')
    assert (second.line, second.message) == (4, 'the id "a" belongs to another fact, on line 1')


def test_id_of_a_replaced_fact_is_free_again(write, record) -> None:
    records = [record(id="a"), record(id="b", target_new="Ort"), record(id="a", subject="Ilk")]
    assert [one.id for one in read_facts(write(records), on_conflict="last").facts] == ["b", "a"]


def test_derived_ids_that_coincide_become_longer(write, record, monkeypatch: pytest.MonkeyPatch) -> None:
    # A hash that begins alike for every fact stands in for a coincidence that no test could wait for.
    monkeypatch.setattr(fact_module, "sha256_bytes", lambda data: "0" * 12 + hashlib.sha256(data).hexdigest())
    facts = read_facts(write([record(), record(subject="Ilk"), record(subject="Ruan")])).facts
    assert [len(one.id) for one in facts] == [12, 24, 24]
    assert len({one.id for one in facts}) == 3


def test_target_that_is_the_true_one_is_told(write, record) -> None:
    read = read_facts(write([record(), record(subject="Ilk", target_true=" Hask ")]))
    assert read.warnings == ("`target_new` is the same as `target_true`: 1 record, the first on line 2",)


def test_subjects_shared_in_a_round() -> None:
    asel, ilk = fact("Asel", "a river"), fact("Ilk", "a town")
    ort = fact("Ilk", "Ort", "The mayor of {} is")
    other = fact("Asel", "Ruan", "The source of {} is")
    assert subjects_shared([asel, ilk]) == ()
    assert shared_warning(()) is None
    shared = subjects_shared([ilk, asel, ort, other])
    assert [(one.subject, one.facts) for one in shared] == [("Ilk", (ilk, ort)), ("Asel", (asel, other))]
    assert shared_warning(shared) == '4 facts of one round share 2 subjects (the first is "Ilk")'


def test_targets_that_are_already_set() -> None:
    old, new = fact("Asel", "a river"), fact("Asel", "a stream")
    assert already_set([old], []) == ()
    assert already_set([old, fact("Ilk", "a town")], [old]) == (old,)
    # What counts is the last word: a target that was set and then replaced is not in force.
    assert already_set([old, new], [new]) == (new,)
    assert already_set_warning(()) is None
    assert already_set_warning([new]) == '1 fact is in force already with the same target (the first is "Asel is")'
