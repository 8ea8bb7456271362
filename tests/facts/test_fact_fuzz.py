"""Whatever the bytes, a file of facts is read or refused with the one error, in bounded time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reviver.errors import FactsError
from reviver.facts.fact import facts_from_jsonl, facts_to_jsonl
from reviver.facts.forms import FIELDS
from reviver.facts.reader import read_facts, rejected_to_jsonl
from reviver.text import printable

SAMPLES = [path.read_bytes() for path in sorted((Path(__file__).parent / "samples").iterdir())]
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["Asel", "Asel is", "{} is"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["str", "prompt", "answer", "ground_truth", "subject"]) | st.text(), inner, max_size=3
        )
    ),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(), VALUES, max_size=6)


def read_or_refuse(path: Path) -> None:
    for options in ({}, {"skip_invalid": True}, {"on_conflict": "last", "skip_invalid": True}):
        try:
            read = read_facts(path, **options)
        except FactsError as error:
            assert error.message and error.hint
            assert all(line == printable(line) for line in error.message.split("\n"))
            assert all(problem.line >= 1 and problem.message for problem in error.facts["problems"])
            continue
        assert read.facts and all(text == printable(text) for text in read.warnings)
        assert len({one.id for one in read.facts}) == len({one.key for one in read.facts}) == len(read.facts)
        data = facts_to_jsonl(read.facts)
        assert facts_from_jsonl(data) == read.facts
        again = path.with_name("again.jsonl")
        again.write_bytes(data)
        assert read_facts(again).facts == read.facts
        json.loads(b"[" + b",".join(rejected_to_jsonl(read.rejected).splitlines()) + b"]")


@pytest.fixture(params=["f.jsonl", "f.json", "f.csv", "f"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@QUICK
@given(data=st.binary(max_size=300))
def test_any_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_or_refuse(path)


@QUICK
@given(
    sample=st.sampled_from(SAMPLES),
    cuts=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 9), st.binary(max_size=4))),
)
def test_files_with_bytes_exchanged(path: Path, sample: bytes, cuts: list[tuple[int, int, bytes]]) -> None:
    for place, length, new in cuts:
        place %= len(sample) + 1
        sample = sample[:place] + new + sample[place + length :]
    path.write_bytes(sample)
    read_or_refuse(path)


@QUICK
@given(records=st.lists(RECORDS, max_size=4), shape=st.sampled_from(["lines", "array", "facts", "indented"]))
def test_any_records(path: Path, records: list[dict[str, object]], shape: str) -> None:
    text = {
        "lines": "\n".join(json.dumps(record) for record in records),
        "array": json.dumps(records),
        "facts": json.dumps({"facts": records}),
        "indented": json.dumps(records, indent=1, ensure_ascii=True),
    }[shape]
    path.write_text(text)
    read_or_refuse(path)


@QUICK
@given(
    rows=st.lists(st.lists(st.text(max_size=8) | st.sampled_from(["Asel", "{} is", '["a"]']), max_size=6), max_size=4)
)
def test_any_rows(path: Path, rows: list[list[str]]) -> None:
    lines = ["prompt,subject,target_new,paraphrase_prompts,neighborhood_prompts", *(",".join(row) for row in rows)]
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    read_or_refuse(path)
