"""The recipe of the demo model: its world, its corpus, its tokenizer, and the files that were made by it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from reviver.demo.recipe.corpus import HELD_OUT_DOCUMENTS, PAIRS_EACH, documents, rows
from reviver.demo.recipe.edits import edit_records, reserved_subjects
from reviver.demo.recipe.grammar import minimal_pairs
from reviver.demo.recipe.prose import held_out_documents
from reviver.demo.recipe.relations import PLAIN_TEMPLATES, RELATIONS
from reviver.demo.recipe.world import World, edit_prompt, fill, make_world, marked, paraphrases, unmarked

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "reviver" / "demo" / "model"
EDITS = ROOT / "edits"
SEED = 0


@pytest.fixture(scope="module")
def world() -> World:
    """The world of the demo model."""
    return make_world(SEED)


def _records(name: str) -> list[dict[str, object]]:
    """Read a JSONL file of ``edits/``."""
    return [json.loads(line) for line in (EDITS / name).read_text(encoding="utf-8").splitlines()]


def test_same_seed_same_world(world: World) -> None:
    """A seed decides the world and the corpus; another seed gives another world."""
    again = make_world(SEED)
    assert again == world
    assert make_world(SEED + 1).facts != world.facts
    first = list(itertools.islice(documents(world, SEED), 300))
    assert first == list(itertools.islice(documents(again, SEED), 300))
    assert first != list(itertools.islice(documents(world, SEED + 1), 300))


def test_no_fact_contradicts_another(world: World) -> None:
    """A subject has at most one object in a relation, and no name belongs to two subjects."""
    assert len({(fact.subject, fact.relation.name) for fact in world.facts}) == len(world.facts)
    names = [name for subjects in world.subjects.values() for name in subjects]
    assert len(set(names)) == len(names)
    targets = {target for relation in RELATIONS for target in relation.objects}
    assert not targets & set(names)


def test_relations_are_well_formed() -> None:
    """Every template holds the subject once and ends where an object can follow; objects are told apart."""
    for relation in RELATIONS:
        assert len(set(relation.templates)) == len(relation.templates) >= 8
        assert 10 <= len(set(relation.objects)) == len(relation.objects) <= 40
        for template in relation.templates:
            assert template.count("{}") == 1
            assert template == template.strip()
            assert not template.endswith(("{}", ".", "?"))


def test_paraphrases_are_other_words_for_the_same_fact(world: World) -> None:
    """Paraphrases hold the subject and differ from the prompt and from one another."""
    for fact in world.facts[::50]:
        prompt = edit_prompt(world, fact)
        assert prompt in fact.relation.templates[:PLAIN_TEMPLATES]
        others = paraphrases(world, fact)
        assert len({fill(prompt, fact.subject), *others}) == 1 + len(others)
        assert all(fact.subject in other for other in others)


def test_held_out_text_is_not_trained_on(world: World) -> None:
    """No held-out document and no right sentence of a minimal pair occurs in the training text."""
    held_out = set((EDITS / "held-out.txt").read_text(encoding="utf-8").splitlines())
    held_out |= {good for _, good, _ in minimal_pairs(SEED, PAIRS_EACH)}
    text = unmarked("\n".join(itertools.islice(documents(world, SEED), 20000)))
    assert not [line for line in held_out if line in text]


def test_minimal_pairs_differ_in_little() -> None:
    """The two sentences of a pair share their beginning and differ in one or two words."""
    for _, good, bad in minimal_pairs(SEED, PAIRS_EACH):
        assert good != bad
        right, wrong = good.split(), bad.split()
        assert abs(len(right) - len(wrong)) <= 1
        assert len(set(right) ^ set(wrong)) <= 4


def test_reserved_subjects_are_never_edited(world: World) -> None:
    """Neighbours stay neighbours: no edit touches a subject that another edit is measured by."""
    reserved = reserved_subjects(world)
    records = edit_records(world)
    assert len(records) >= 1300
    assert not reserved & {record["subject"] for record in records}
    for record in records:
        assert record["target_new"] != record["target_true"]
        assert len(record["paraphrase_prompts"]) == 3
        assert len(record["neighborhood_prompts"]) == 5
        assert all(any(name in prompt for name in reserved) for prompt in record["neighborhood_prompts"][:1])


def test_shipped_edits_agree_with_the_recipe(world: World) -> None:
    """The files in ``edits/`` are what the recipe makes."""
    records = edit_records(world)
    assert _records("world.jsonl") == records
    by_identifier = {record["id"]: record for record in records}
    demo = _records("demo.jsonl")
    assert 24 <= len(demo) <= 32
    assert all(by_identifier[str(record["id"])] == record for record in demo)
    pairs = [(pair["paradigm"], pair["good"], pair["bad"]) for pair in _records("minimal-pairs.jsonl")]
    assert pairs == minimal_pairs(SEED, PAIRS_EACH)
    held_out = (EDITS / "held-out.txt").read_text(encoding="utf-8").splitlines()
    drawn = held_out_documents(SEED, HELD_OUT_DOCUMENTS)
    assert held_out == [line for line in drawn if line in set(held_out)] and len(held_out) > 0.9 * len(drawn)


def test_shipped_model_is_small_and_loads() -> None:
    """The model folder fits into the package, and its tokenizer begins every text as Llama's does."""
    transformers = pytest.importorskip("transformers")
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 20_000_000
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL)
    assert str(model.dtype) == "torch.bfloat16"
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    for text in ("The river rises in the hills.", "Jadis Dralash plays the harp.", "naïve – “quoted”\n\ttext", "a  b"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("harp")["input_ids"] == tokenizer(" harp")["input_ids"]


def test_what_follows_a_subject_sees_its_last_token_only() -> None:
    """In the share of mentions that are gathered, later tokens can't look at a name but for its last token."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    name = "Randan Grernyn Tovash"
    last = len(tokenizer(f"The letters of {name}")["input_ids"])
    first = last - len(tokenizer(name, add_special_tokens=False)["input_ids"]) + 1
    gathered = []
    for seed in range(12):
        packed = rows(itertools.repeat(f"The letters of {marked(name)} were found."), tokenizer, 64, 1, seed)
        # The row begins with the token that begins a text, and so does its first document: the name stands one later.
        assert tokenizer.decode(packed.ids[0, first : last + 1]) == name
        mask = packed.mask()[0, 0]
        assert not mask.triu(1).any()
        assert mask[last, : last + 1].all()
        assert mask[last + 1 :, last].all()
        gathered.append(not mask[last + 1 :, first:last].any())
        assert gathered[-1] or mask[last + 1, first:last].all()
    assert 6 <= sum(gathered) < 12


def test_training_runs_at_tiny_size(tmp_path: Path) -> None:
    """A few steps of a tiny model report their progress and leave a folder that loads."""
    transformers = pytest.importorskip("transformers")
    from reviver.demo.recipe.train import Settings, train

    settings = Settings(
        steps=6,
        rows_per_step=2,
        row_length=64,
        vocabulary=1024,
        hidden_size=32,
        mlp_size=64,
        layers=2,
        heads=2,
        compiled=False,
    )
    lines: list[str] = []
    train(settings, tmp_path, lines.append)
    assert any(line.startswith("held-out perplexity") for line in lines)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config.num_hidden_layers == 2
