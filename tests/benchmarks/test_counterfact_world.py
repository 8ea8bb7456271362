"""The medium model's world: relations found from templates, nothing that an edit will say learnt before, held-out text apart."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from counterfact_world import (
    CounterFactWorld,
    Library,
    RealText,
    Templates,
    fits,
    make_world,
    minimal_pairs,
    real_text,
    template_of,
)

from reviver.demo.recipe.world import unmarked

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def data() -> Path:
    for name in ("counterfact-flat.jsonl", "counterfact-full.jsonl", "blimp.jsonl", "wikitext2-valid.txt"):
        if not (DATA / name).exists():
            pytest.skip(f"needs {name}, which is looked for in ../shared/data and not there")
    return DATA


@pytest.fixture(scope="module")
def world(data: Path) -> CounterFactWorld:
    return make_world(data)


@pytest.fixture(scope="module")
def text(data: Path) -> RealText:
    return real_text(data)


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_templates_are_told_apart_by_their_objects() -> None:
    """A template of two relations belongs to the one that has the record's objects elsewhere."""

    def full(relation: str, prompt: str, true: str, new: str) -> dict[str, object]:
        said = {"prompt": prompt, "relation_id": relation, "target_true": {"str": true}, "target_new": {"str": new}}
        return {"requested_rewrite": said, "neighborhood_prompts": [prompt.replace("{}", "Somewhere")]}

    found = Templates(
        [
            full("continent", "{} is in", "Asia", "Europe"),
            full("country", "{} is in", "France", "Italy"),
            full("country", "{}, which is located in", "Spain", "Italy"),
            full("continent", "{}, in", "Asia", "Africa"),
        ],
        [],
    )
    assert found.relation("{} is in", ("Africa", "Asia")) == "continent"
    assert found.relation("{} is in", ("Spain", "Italy")) == "country"
    assert found.read("Lyon, which is located in") == ("{}, which is located in", "Lyon")
    assert found.read("Lyon, in") == ("{}, in", "Lyon")
    assert found.of("country") == ["{} is in", "{}, which is located in"]


def test_articles() -> None:
    assert fits("{}'s profession is a", "poet") and not fits("{}'s profession is a", "actor")
    assert fits("{}'s profession is an", "actor") and not fits("{}'s profession is an", "poet")
    assert fits("{} works as", "actor")


def test_every_flat_record_has_the_relation_of_its_full_one(data: Path) -> None:
    """The full records are among the flat ones: what is found from templates is what they say, but for shared templates."""
    flat, full = records(data / "counterfact-flat.jsonl"), records(data / "counterfact-full.jsonl")
    said = {one["case_id"]: one["requested_rewrite"] for one in full}
    # Each half of the full records is found from the other half.
    right = Counter[bool]()
    for part in (0, 1):
        templates = Templates(full[1 - part :: 2], flat)  # type: ignore[arg-type]
        asked = {one["case_id"] for one in full[part::2]}
        for record in flat:
            if record["case_id"] in asked:
                objects = (str(record["ground_truth"]), str(record["target_new"]))
                found = templates.relation(template_of(record), objects)  # type: ignore[arg-type]
                right[found == said[record["case_id"]]["relation_id"]] += 1  # type: ignore[index]
    assert sum(right.values()) == len(full)
    assert right[True] / len(full) > 0.95
    assert all(relations for relations in Templates(full, flat).relations.values())  # type: ignore[arg-type]


def test_facts_are_many_and_said_in_several_templates(world: CounterFactWorld) -> None:
    assert len(world.edits) > 19_000
    assert len({(fact.subject, fact.relation.name) for fact in world.known}) == len(world.known)
    assert len({fact.relation.name for fact in world.known}) == 34
    several = [len(fact.relation.templates) >= 3 for fact in world.known]
    assert sum(several) / len(several) > 0.95
    assert len({edit.id for edit in world.edits}) == len(world.edits)
    with_neighbors = [bool(edit.neighborhood_prompts) for edit in world.edits]
    assert sum(with_neighbors) / len(with_neighbors) > 0.95


def test_no_new_target_is_learnt(world: CounterFactWorld, text: RealText) -> None:
    """What asks an edit's question is never answered with its target, in no statement and in no real text."""
    statements = {
        (template.replace("{}", fact.subject), fact.target)
        for fact in world.known
        for template in fact.relation.templates
    }
    asked = {(prompt, edit.target_new) for edit in world.edits for prompt in (edit.text, *edit.paraphrase_prompts)}
    assert not statements & asked
    # Every question has one answer, and the answer of an edit's is its true object.
    answers = dict(statements)
    assert len(answers) == len(statements)
    assert all(
        answers[prompt] == edit.target_true for edit in world.edits for prompt in (edit.text, *edit.paraphrase_prompts)
    )
    # The two first words lead to the questions that may stand at a place of a text.
    begins: dict[tuple[str, ...], list[str]] = {}
    for prompt, target in asked:
        said = f"{prompt} {target}"
        begins.setdefault(tuple(said.split()[:2]), []).append(said)
    for document in text.training:
        words = document.split()
        joined = " ".join(words)
        for two in set(itertools.pairwise(words)):
            assert not any(said in joined for said in begins.get(two, ()))


def test_neighbors_are_known_and_never_edited(world: CounterFactWorld) -> None:
    known = {template.replace("{}", fact.subject): fact for fact in world.known for template in fact.relation.templates}
    edited = {prompt for edit in world.edits for prompt in (edit.text, *edit.paraphrase_prompts)}
    subjects = {(edit.subject, known[edit.text].relation.name) for edit in world.edits}
    for edit in world.edits:
        for probe in edit.neighborhood_prompts:
            fact = known[probe.prompt]
            assert fact.target == probe.answer == edit.target_true
            assert fact.relation.name == known[edit.text].relation.name
            assert probe.prompt not in edited and (fact.subject, fact.relation.name) not in subjects


def test_training_text_keeps_out_what_measures(data: Path, world: CounterFactWorld, text: RealText) -> None:
    """Held-out documents and BLiMP's sentences are in no training text, and facts are about half of it."""
    assert len(text.held_out) > 100 and len(text.training) > 1000
    assert not set(text.training) & set(text.held_out)
    pairs = {sentence for pair in minimal_pairs(data, 150) for sentence in pair}
    assert len(pairs) > 15_000
    library = Library.of(world, text, 0, 0.08)
    drawn = [*itertools.islice(library.documents("test"), 3000)]
    plain = [unmarked(document) for document in drawn]
    assert not set(plain) & library.kept_out and not set(plain) & pairs
    assert set(plain) & set(text.training)
    about = sum(len(one) for one, marked in zip(plain, drawn, strict=True) if one != marked)
    assert 0.45 < about / sum(map(len, plain)) < 0.55
    assert drawn == [*itertools.islice(library.documents("test"), 3000)]


def test_a_smaller_world_is_part_of_the_whole(data: Path, world: CounterFactWorld) -> None:
    small = make_world(data, limit=50)
    assert len(small.edits) == 50
    assert {edit.text for edit in small.edits} <= {edit.text for edit in world.edits}
    assert random.Random(0).choice(small.edits).target_true is not None


def test_unsaid_edits_change_nothing_that_is_learnt(data: Path) -> None:
    """They come behind the others, training says none of them, and no two edits ask the same prompt for different objects."""
    small, larger = make_world(data, limit=300), make_world(data, limit=300, unsaid=200)
    assert larger.known == small.known and larger.edits[:300] == small.edits and len(larger.edits) == 500
    said = {template.replace("{}", fact.subject) for fact in small.known for template in fact.relation.templates}
    answers: dict[str, str | None] = {}
    for edit in larger.edits[300:]:
        for prompt in (edit.text, *edit.paraphrase_prompts):
            assert prompt not in said
            assert answers.setdefault(prompt, edit.target_true) == edit.target_true
    learnt = {fact.target for fact in small.known}
    assert sum(edit.target_true in learnt for edit in larger.edits[300:]) > 190
    assert sum(bool(edit.neighborhood_prompts) for edit in larger.edits[300:]) > 150
