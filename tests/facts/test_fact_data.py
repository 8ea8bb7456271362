"""Published files, as dirty as they are; they lie beside the repository and are never part of it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from reviver.errors import FactsError
from reviver.facts.fact import facts_from_jsonl, facts_to_jsonl
from reviver.facts.reader import read_facts

DATA = Path(__file__).parents[3] / "shared" / "data"


def published(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name}, which is looked for in ../shared/data and not there")
    return path


def contradicted_keys(path: Path) -> int:
    """Count the subjects and prompts with several targets without the reader's help."""
    targets = defaultdict(set)
    for line in path.read_bytes().split(b"\n"):
        if line:
            record = json.loads(line)
            targets[record["subject"], record["prompt"]].add(record["target_new"])
    return sum(len(several) > 1 for several in targets.values())


def test_counterfact_flat() -> None:
    path = published("counterfact-flat.jsonl")
    with pytest.raises(FactsError) as caught:
        read_facts(path)
    problems = caught.value.facts["problems"]
    assert problems[0].line == 913
    assert (
        len({problem.message.split(" gets the target ")[0] for problem in problems}) == 169 == contradicted_keys(path)
    )
    last = read_facts(path, on_conflict="last")
    assert (last.form, len(last.facts)) == ("counterfact-flat", 19_721)
    assert len({one.key for one in last.facts}) == 19_721
    first = read_facts(path, skip_invalid=True)
    assert len(first.facts) == 19_721
    assert len(first.facts) + len(first.rejected) + first.duplicates == 20_000
    assert {one.key for one in first.facts} == {one.key for one in last.facts}
    data = facts_to_jsonl(last.facts)
    assert facts_from_jsonl(data) == last.facts
    last_record = {}
    true_targets = defaultdict(set)
    for line in path.read_bytes().split(b"\n"):
        if line:
            record = json.loads(line)
            last_record[record["subject"], record["prompt"]] = record
            true_targets[record["subject"], record["prompt"]].add(record["ground_truth"])
    for one in last.facts:
        key = one.subject, one.text
        assert one.target_new == last_record[key]["target_new"]
        assert one.target_true in true_targets[key]
        assert one.paraphrase_prompts == ()


def test_counterfact_full() -> None:
    read = read_facts(published("counterfact-full.jsonl"))
    assert (read.form, len(read.facts), read.warnings, read.duplicates) == ("counterfact", 1_440, (), 0)
    assert sum(any("\n" in prompt for prompt in one.paraphrase_prompts) for one in read.facts) == 423
    assert {len(one.paraphrase_prompts) for one in read.facts} == {2}
    assert {len(one.neighborhood_prompts) for one in read.facts} == {10}
    assert facts_from_jsonl(facts_to_jsonl(read.facts)) == read.facts


def test_zsre() -> None:
    path = published("zsre.jsonl")
    with pytest.raises(FactsError) as caught:
        read_facts(path)
    problems = caught.value.facts["problems"]
    assert [one.line for one in problems if "is not in the prompt" in one.message] == [397, 598, 677]
    assert sum(" gets the target " in one.message for one in problems) == 7
    assert len(problems) == 10
    read = read_facts(path, skip_invalid=True)
    assert (read.form, len(read.facts), read.duplicates) == ("knowedit", 985, 5)
    assert {len(one.neighborhood_prompts) for one in read.facts} == {2}
    assert all(one.paraphrase_prompts and one.target_true for one in read.facts)


def test_files_that_hold_no_facts() -> None:
    for name in ("blimp.jsonl", "tinystories.jsonl", "wikitext2-test.txt"):
        with pytest.raises(FactsError):
            read_facts(published(name), skip_invalid=True)
