"""Finding a few facts in a file gives what reading the whole file and choosing gives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviver.errors import FactsError
from reviver.facts.characters import text_fault
from reviver.facts.fact import Fact, Probe, facts_from_jsonl, facts_to_jsonl
from reviver.facts.search import find_facts

TEXT = st.text(st.sampled_from('aAbB"\\,:é\u2028{}ſK ') | st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda text: text_fault(text, several_lines=False) is None and "{}" not in text
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Fact, ...]:
    count = draw(st.integers(0, 6))
    return tuple(
        Fact(
            id=f"id-{number}",
            prompt=f"{draw(TEXT)} {{}}",
            subject=draw(TEXT),
            target_new=draw(TEXT),
            target_true=draw(st.none() | TEXT),
            paraphrase_prompts=tuple(draw(st.lists(TEXT, max_size=2))),
            neighborhood_prompts=tuple(
                Probe(prompt=draw(TEXT), answer=draw(st.none() | TEXT)) for _ in range(draw(st.integers(0, 2)))
            ),
        )
        for number in range(count)
    )


@settings(max_examples=150, deadline=None)
@given(facts=batches(), query=TEXT, indent=st.booleans())
def test_finding_is_reading_and_choosing(facts: tuple[Fact, ...], query: str, indent: bool) -> None:
    data = facts_to_jsonl(facts)
    if indent:
        # Another form of JSON, as a stranger's file may have it.
        data = b"".join(json.dumps(json.loads(line)).encode() + b"\n" for line in data.splitlines())

    def wanted(subject: str, prompt: str) -> bool:
        return query in subject or query in prompt

    expected = tuple(fact for fact in facts_from_jsonl(data) if wanted(fact.subject, fact.prompt))
    assert find_facts(data, wanted, count=len(facts), name="facts.jsonl") == expected


def test_texts_that_look_like_fields_are_texts() -> None:
    trap = '","prompt":"x","subject":"y","target_new":"z'
    fact = Fact(id="1", prompt=f"{{}} {trap}", subject=trap, target_new=trap, paraphrase_prompts=(trap,))
    seen = []
    found = find_facts(
        facts_to_jsonl([fact]), lambda subject, prompt: bool(seen.append((subject, prompt))) or True, count=1, name="f"
    )
    assert found == (fact,)
    assert seen == [(fact.subject, fact.prompt)]


@pytest.mark.parametrize("data", [b"\xff\n", b"{\n", b'{"prompt":"a","subject":"\\x","target_new":"b"}\n', b"[]\n"])
def test_a_file_that_holds_no_facts_is_refused_like_by_the_reader(data: bytes) -> None:
    with pytest.raises(FactsError):
        find_facts(data, lambda subject, prompt: True, count=1, name="v1/facts.jsonl")
