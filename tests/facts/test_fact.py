"""The fact itself, its normalised bytes, and the space between a prompt and what follows."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reviver.errors import FactsError
from reviver.facts.fact import Fact, Probe, fact_id, facts_from_jsonl, facts_to_jsonl, with_space

# What may stand in a text of one line, and in one of several: stated here once more, apart from the code.
ONE_LINE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(
    lambda text: text.strip() == text and "{}" not in text
)
SEVERAL_LINES = st.text(
    st.one_of(st.characters(exclude_categories=("Cc", "Cs")), st.sampled_from("\n\t\u2028\u2029")), min_size=1
).filter(lambda text: text.rstrip(" \t") == text and not text.isspace())
FACTS = st.builds(
    Fact,
    id=ONE_LINE,
    prompt=st.tuples(ONE_LINE, ONE_LINE).map(" {} ".join),
    subject=ONE_LINE,
    target_new=ONE_LINE,
    target_true=st.none() | ONE_LINE,
    paraphrase_prompts=st.lists(SEVERAL_LINES, max_size=3).map(tuple),
    neighborhood_prompts=st.lists(st.builds(Probe, prompt=SEVERAL_LINES, answer=st.none() | ONE_LINE), max_size=3).map(
        tuple
    ),
)


def fact(**fields: object) -> Fact:
    return Fact(**({"id": "a", "prompt": "{} is", "subject": "Asel", "target_new": "a river"} | fields))


def test_text_puts_the_subject_in_place_and_leaves_other_braces_alone() -> None:
    one = fact(prompt="The {set} of {} holds { and } and {0} and {{", subject="A{x}")
    assert one.text == "The {set} of A{x} holds { and } and {0} and {{"
    assert one.text[one.subject_start :].startswith("A{x}")
    assert one.key == ("A{x}", one.prompt)


@given(st.lists(FACTS, max_size=5, unique_by=lambda one: one.id))
def test_normalised_bytes_are_read_back_to_the_same_facts_and_bytes(facts: list[Fact]) -> None:
    data = facts_to_jsonl(facts)
    assert facts_from_jsonl(data) == tuple(facts)
    assert facts_to_jsonl(facts_from_jsonl(data)) == data
    assert len(data.decode().splitlines()) == len(facts)  # Unicode's line ends count here as well.


def test_normalised_lines_are_sorted_json_in_plain_utf8() -> None:
    data = facts_to_jsonl([fact(subject="Ålesund", paraphrase_prompts=("a\u2028b\n",))])
    assert (
        data
        == (
            '{"id":"a","paraphrase_prompts":["a\\u2028b\\n"],"prompt":"{} is","subject":"Ålesund","target_new":"a river"}\n'
        ).encode()
    )


def test_id_is_the_hash_of_what_the_fact_says() -> None:
    said = json.dumps(
        {"prompt": "{} is", "subject": "Åse", "target_new": "a river"},
        sort_keys=True, separators=(",", ":"), ensure_ascii=False,
    )  # fmt: skip
    assert fact_id("{} is", "Åse", "a river") == hashlib.sha256(said.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[]", "is not an object"),
        (b"{", "not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"id":"a","prompt":"{} is","subject":"A","target_new":"b","id":"c"}', "given twice"),
        (b'{"id":"a","prompt":"{} is","subject":"A","target_new":NaN}', "NaN"),
        (b'{"id":"a","prompt":"{} is","subject":"A","target_new":"b","extra":1}', "unknown field `extra`"),
        (b'{"id":"a","prompt":"A is","subject":"A","target_new":"b"}', "exactly one `{}`"),
        (b'{"id":"a","prompt":"{} {}","subject":"A","target_new":"b"}', "exactly one `{}`"),
        (b'{"id":"a","prompt":"{}","subject":"{}","target_new":"b"}', "exactly one `{}`"),
        (b'{"id":7,"prompt":"{} is","subject":"A","target_new":"b"}', "no text in `id`"),
        (b'{"id":"a","prompt":"{} is","subject":"","target_new":"b"}', "`subject` that is empty"),
        (b'{"id":"a","prompt":"{} is","subject":"A","target_new":"b\\n"}', "control character U+000A"),
        (b'{"id":"a","prompt":"{} is","subject":"A","target_new":"\\ud800"}', "surrogate"),
        (b'{"id":"a","prompt":"{} is","subject":"A","target_new":"b","paraphrase_prompts":"x"}', "no list"),
        (b'{"id":"a","prompt":"{} is","subject":"A","target_new":"b","neighborhood_prompts":[{"prompt":"x"}]}', "text"),
        (b'{"id":"ok","prompt":"{} is","subject":"A","target_new":"b"}', 'the id "ok" of an earlier one'),
    ],
)
def test_history_of_a_stranger_is_refused_with_its_line(line: bytes, said: str) -> None:
    good = facts_to_jsonl([fact(id="ok")])
    with pytest.raises(FactsError) as caught:
        facts_from_jsonl(good + b"\n" + line + b"\n", name="v3/facts.jsonl")
    assert caught.value.message.startswith("v3/facts.jsonl:3: ")
    assert said in caught.value.message
    assert caught.value.facts["line"] == 3


@pytest.mark.parametrize(
    ("prompt", "target", "continuation"),
    [
        ("The capital is", "Paris", " Paris"),
        ("The capital is", "   Paris", " Paris"),
        ("The capital is ", "Paris", "Paris"),
        ("Q: the capital?\nA:\n", "Paris", "Paris"),
        ("Q: the capital?\nA:", "Paris", " Paris"),
        ("The capital (", "Paris", "Paris"),
        ('He said "', "yes", "yes"),
        ('He said "no"', "yes", " yes"),
        ("He said “", "yes", "yes"),
        ("Dallas", ", Texas", ", Texas"),
        ("Dallas", "'s mayor", "'s mayor"),
        ("Dallas", "’s mayor", "’s mayor"),
        ("He works with", ".NET", " .NET"),
        ("He speaks", "!Kung", " !Kung"),
        ("He wrote", "'Twas the night", " 'Twas the night"),
        ("It costs", "-5", " -5"),
        ("The answer is", "42", " 42"),
        ("The answer is", "é", " é"),
        ("法国的首都是", "巴黎", "巴黎"),
        ("法国首都的英文名是", "Paris", "Paris"),
        ("“首都”：", "巴黎", "巴黎"),
        ("首都は「", "東京", "東京"),
        ("เมืองหลวงคือ", "กรุงเทพฯ", "กรุงเทพฯ"),
        ("The Chinese word for it is", "巴黎", " 巴黎"),
        ("프랑스의 수도는", "파리", " 파리"),
        ("", "Paris", "Paris"),
        (None, "Paris", " Paris"),
        (None, "巴黎", "巴黎"),
        (None, ", Texas", ", Texas"),
    ],
)
def test_one_space_goes_where_one_belongs(prompt: str | None, target: str, continuation: str) -> None:
    assert with_space(target, prompt) == continuation
    assert with_space(continuation, prompt) == continuation
