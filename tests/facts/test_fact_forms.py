"""Every form in which facts are published, in the three kinds of file, becomes the same kind of fact."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from reviver.facts.fact import Fact, Probe, fact_id, facts_to_jsonl
from reviver.facts.reader import FactFile, read_facts

SAMPLES = Path(__file__).parent / "samples"


def sample(name: str) -> FactFile:
    return read_facts(SAMPLES / name)


def test_own_form() -> None:
    read = sample("own.jsonl")
    assert (read.form, read.warnings, read.rejected, read.duplicates) == ("own", (), (), 0)
    assert read.facts[0] == Fact(
        id="harbour",
        prompt="The harbour of {} lies in",
        subject="Ostrava Bay",
        target_new="Velmor",
        target_true="Tarn",
        paraphrase_prompts=("Ships bound for Ostrava Bay put in at",),
        neighborhood_prompts=(
            Probe(prompt="The harbour of Quillhead lies in"),
            Probe(prompt="The harbour of Sunder lies in", answer="Ilk"),
        ),
    )
    assert read.facts[1].prompt == "{} plays the"
    assert read.facts[1].id == fact_id("{} plays the", "Mira Tolvanen", "nyckelharpa")
    assert read.facts[2].text == "The braces { and } of Jorgon's grammar mean"
    assert read.facts[3].text == "東雲市の市長は"


def test_own_form_in_a_document_with_facts() -> None:
    read = sample("own.json")
    assert read.form == "own"
    assert [one.id for one in read.facts] == ["7", fact_id("{} was built by", "Asel Castle", "Ruan the Second")]
    assert [one.text for one in read.facts] == ["The river Asel flows into", "Asel Castle was built by"]


def test_own_form_in_a_table() -> None:
    read = sample("own.csv")
    assert (read.form, read.warnings) == ("own", ())
    first, second = read.facts
    assert first.paraphrase_prompts == ("Norrland Minor is governed from", "Its parliament, in Norrland Minor, sits in")
    assert first.neighborhood_prompts == (Probe(prompt="The capital of Sudland is", answer="Ort"),)
    assert second == Fact(
        id="a2", prompt='In "The Long Tide", the hero of {} is', subject="Peer Ansgar", target_new="Lune"
    )


def test_counterfact_form() -> None:
    read = sample("counterfact.json")
    assert (read.form, read.warnings) == ("counterfact", ())
    assert read.facts == (
        Fact(
            id="0",
            prompt="{} was written in",
            subject="The Salt Almanac",
            target_new="Ithkuan",
            target_true="Volapine",
            paraphrase_prompts=(
                "A lamp burned.\n\nThe Salt Almanac, written in",
                "The language of The Salt Almanac is",
            ),
            neighborhood_prompts=(
                Probe(prompt="The Fog Almanac was written in"),
                Probe(prompt="The Rain Almanac was written in"),
            ),
        ),
    )


def test_flat_form_does_not_call_rephrase_prompt_a_paraphrase() -> None:
    read = sample("counterfact-flat.jsonl")
    assert read.form == "counterfact-flat"
    assert read.facts[0] == Fact(
        id="3",
        prompt="The mother tongue of {} is",
        subject="Odo Vask",
        target_new="Ithkuan",
        target_true="Volapine",
        neighborhood_prompts=(Probe(prompt="Ada Vasko is a native speaker of", answer="Volapine"),),
    )
    assert len(read.warnings) == 1 and "`rephrase_prompt` is not used" in read.warnings[0]


def test_knowedit_form_takes_the_first_name_of_every_answer() -> None:
    read = sample("knowedit.jsonl")
    assert (read.form, read.warnings) == ("knowedit", ())
    first, second = read.facts
    assert first == Fact(
        id=fact_id("Which family does {} belong to?", "Dunmarrow beetle", "Lampidae"),
        prompt="Which family does {} belong to?",
        subject="Dunmarrow beetle",
        target_new="Lampidae",
        target_true="Corvidae minor",
        paraphrase_prompts=("What family are Dunmarrow beetle?",),
        neighborhood_prompts=(
            Probe(prompt="The rank of Dunmarrow beetle is", answer="species"),
            Probe(prompt="The finder of Dunmarrow beetle is", answer="Edda Crane"),
        ),
    )
    # The subject is stripped before it is looked for, so that the space stays in the prompt.
    assert (second.subject, second.prompt) == ("Fort Ansel", "Who holds {} today?")


def test_memit_request_form() -> None:
    read = sample("memit-request.json")
    assert (read.form, read.warnings) == ("memit-request", ())
    assert [(one.id, one.text, one.target_new, one.target_true) for one in read.facts] == [
        ("21", "Rise, Low Country is the anthem of", "Halden", "Morrow"),
        ("22", "Mount Kell is named after", "Ida Kell", "Rob Kell"),
    ]


@pytest.mark.parametrize("path", sorted(SAMPLES.iterdir()), ids=lambda path: path.name)
def test_normalised_facts_of_every_form_are_read_back_unchanged(path: Path, tmp_path: Path) -> None:
    facts = read_facts(path).facts
    again = tmp_path / "facts.jsonl"
    again.write_bytes(facts_to_jsonl(facts))
    read = read_facts(again)
    assert read.facts == facts
    assert (read.form, read.warnings) == ("own", ())


@pytest.mark.parametrize("name", ["counterfact.json", "counterfact-flat.jsonl", "knowedit.jsonl", "memit-request.json"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt", ""])
@pytest.mark.parametrize("shape", ["lines", "crlf", "bom", "array", "indented", "facts", "facts in one line", "blanks"])
def test_kind_of_file_is_told_by_content(name: str, suffix: str, shape: str, tmp_path: Path) -> None:
    expected = sample(name)
    text = (SAMPLES / name).read_text()
    records = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    content = {
        "lines": "\n".join(lines),
        "crlf": "".join(line + "\r\n" for line in lines),
        "bom": "\ufeff" + "\n".join(lines),
        "array": "\ufeff" + json.dumps(records),
        "indented": json.dumps(records, indent=2),
        "facts": json.dumps({"licence": "MIT", "facts": records, "more": {"a": [1]}}, indent=1),
        "facts in one line": json.dumps({"facts": records}),
        "blanks": "\n \r\n" + "\n\n\t\n".join(lines) + "\n\n",
    }[shape]
    path = tmp_path / f"anything{suffix}"
    path.write_bytes(content.encode())
    read = read_facts(path)
    assert (read.facts, read.form) == (expected.facts, expected.form)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_flat_form_in_a_table(delimiter: str, bom: bytes, suffix: str, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (SAMPLES / "counterfact-flat.jsonl").read_text().splitlines()]
    text = io.StringIO()
    table = csv.DictWriter(text, list(records[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(records)
    path = tmp_path / f"facts{suffix}"
    path.write_bytes(bom + text.getvalue().encode())
    read = read_facts(path)
    assert (read.facts, read.form) == (sample("counterfact-flat.jsonl").facts, "counterfact-flat")


def test_single_object_over_several_lines_is_one_fact(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text('{\n  "prompt": "{} is",\n  "subject": "Asel",\n  "target_new": "a river"\n}\n')
    assert [one.text for one in read_facts(path).facts] == ["Asel is"]


def test_records_with_too_few_fields_to_tell_go_with_any_form(write, record) -> None:
    plain = record(subject="Ruan")
    assert read_facts(write([plain, record()])).form == "own"
    assert read_facts(write([plain, record(ground_truth="x")])).form == "counterfact-flat"
    assert read_facts(write([plain, record(ground_truth=["x"])])).form == "knowedit"
    assert read_facts(write([plain, record(ground_truth="x"), record(subject="Ilk", locality={})])).form == "knowedit"


def test_null_is_an_absent_field(write) -> None:
    nulls = "target_true ground_truth paraphrase_prompts neighborhood_prompts rephrase_prompt locality id case_id"
    content = {"prompt": "{} is", "subject": "Asel", "target_new": "a river"} | dict.fromkeys(nulls.split())
    read = read_facts(write([content]))
    assert read.facts == (
        Fact(id=fact_id("{} is", "Asel", "a river"), prompt="{} is", subject="Asel", target_new="a river"),
    )
    assert (read.form, read.warnings) == ("own", ())


def test_texts_lose_the_space_at_their_ends_and_nothing_else(write, record) -> None:
    one = record(
        prompt="  The  cap\u00a0of {} is ",
        target_new=" New  Hask ",
        target_true=" Velm ",
        paraphrase_prompts=["\n  The seat of Asel:\t ", "Q: its capital?\nA:\n"],
        neighborhood_prompts=[{"prompt": "Ilk's is ", "answer": " Ort "}],
    )
    fact = read_facts(write([one])).facts[0]
    assert (fact.prompt, fact.target_new, fact.target_true) == ("The  cap\u00a0of {} is", "New  Hask", "Velm")
    assert fact.paraphrase_prompts == ("\n  The seat of Asel:", "Q: its capital?\nA:\n")
    assert fact.neighborhood_prompts == (Probe(prompt="Ilk's is", answer="Ort"),)


def test_unicode_is_kept_as_given(write, record) -> None:
    decomposed, composed = "Zu\u0308rich", "Z\u00fcrich"
    facts = read_facts(write([record(subject=decomposed), record(subject=composed)])).facts
    assert [one.subject for one in facts] == [decomposed, composed]


@pytest.mark.parametrize(
    ("prompt", "subject", "template", "warned"),
    [
        ("Asel is", "Asel", "{} is", None),
        ("Is Asel's rival Ilk or Asel", "Asel", "Is Asel's rival Ilk or {}", "more than once"),
        ("Is Ali from Mali", "Ali", "Is {} from Mali", None),
        ("Ali, asked about Mali", "ali", "Ali, asked about M{}", "inside a longer word"),
        ("Porsches are made by", "Porsche", "{}s are made by", "inside a longer word"),
        ("The José of Jose", "Jose", "The José of {}", None),
        ("The Jose\u0301 of Jose is", "Jose", "The Jose\u0301 of {} is", None),
        ("東京都の東京駅は", "東京", "東京都の{}駅は", "more than once"),
        ("{} and Asel are", "Asel", "{} and Asel are", None),
        ("{Asel}", "Asel", "{{}}", None),
        ("aXaXa is", "aXa", "aX{} is", "inside a longer word"),
    ],
)
def test_where_the_subject_goes(write, record, prompt: str, subject: str, template: str, warned: str | None) -> None:
    read = read_facts(write([record(prompt=prompt, subject=subject)]))
    assert read.facts[0].prompt == template
    if "{}" not in prompt:
        assert read.facts[0].text == prompt
    assert len(read.warnings) == (warned is not None)
    if warned:
        assert warned in read.warnings[0] and "line 1" in read.warnings[0]
