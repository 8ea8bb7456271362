"""The fact files that go with the demo model: counterfactual edits, minimal pairs, and held-out prose."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from reviver.demo.recipe.corpus import PAIRS_EACH
from reviver.demo.recipe.grammar import minimal_pairs
from reviver.demo.recipe.relations import PLAIN_TEMPLATES
from reviver.demo.recipe.world import Fact, World, edit_prompt, fill, paraphrases

NEIGHBOURS = 5
# Every object of a relation keeps this many subjects that are never edited, so that neighbours stay neighbours however
# many edits are made.
RESERVED_EACH = 2
DEMO_FACTS = 30


Knower = Callable[[Sequence[str], Sequence[str]], list[bool]]


class EditRecord(TypedDict):
    """One line of a fact file."""

    id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str
    paraphrase_prompts: list[str]
    neighborhood_prompts: list[str]


def reserved_subjects(world: World) -> set[str]:
    """Choose the subjects that no edit ever touches and that serve as neighbours of the others."""
    rng = random.Random(f"reserved {world.seed}")
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for fact in world.facts:
        groups[fact.subject].append((fact.relation.name, fact.target))
    missing = {group: RESERVED_EACH for owned in groups.values() for group in owned}
    subjects = list(groups)
    rng.shuffle(subjects)
    reserved: set[str] = set()
    # Subjects that help all of their groups come first, so that few are needed.
    for needed in (2, 1):
        for subject in subjects:
            helped = sum(missing[group] > 0 for group in groups[subject])
            if subject not in reserved and helped >= needed:
                reserved.add(subject)
                for group in groups[subject]:
                    missing[group] -= 1
    return reserved


def edit_records(world: World) -> list[EditRecord]:
    """Make a counterfactual edit of every fact about a subject that is not reserved, in an order drawn by seed."""
    rng = random.Random(f"edits {world.seed}")
    reserved = reserved_subjects(world)
    neighbours: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in world.facts:
        if fact.subject in reserved:
            neighbours[fact.relation.name, fact.target].append(fact)
    records: list[EditRecord] = []
    for fact in world.facts:
        if fact.subject in reserved:
            continue
        prompts = [
            fill(template, other.subject)
            for template in fact.relation.templates[:PLAIN_TEMPLATES]
            for other in neighbours[fact.relation.name, fact.target]
        ]
        records.append(
            EditRecord(
                id=fact.identifier,
                prompt=edit_prompt(world, fact),
                subject=fact.subject,
                target_new=rng.choice([target for target in fact.relation.objects if target != fact.target]),
                target_true=fact.target,
                paraphrase_prompts=paraphrases(world, fact),
                neighborhood_prompts=rng.sample(prompts, min(NEIGHBOURS, len(prompts))),
            )
        )
    rng.shuffle(records)
    return records


def demo_records(records: list[EditRecord], knows: Knower) -> list[EditRecord]:
    """Take the first facts, one for each prompt, that the model knows in every wording and of every neighbour."""
    chosen: list[EditRecord] = []
    prompts_taken: set[str] = set()
    subjects: set[str] = set()
    for record in records:
        prompts = [record["prompt"].replace("{}", record["subject"])]
        prompts += record["paraphrase_prompts"] + record["neighborhood_prompts"]
        if record["prompt"] in prompts_taken or record["subject"] in subjects:
            continue
        if all(knows(prompts, [record["target_true"]] * len(prompts))):
            chosen.append(record)
            prompts_taken.add(record["prompt"])
            subjects.add(record["subject"])
        if len(chosen) == DEMO_FACTS:
            break
    return chosen


def write_edits(world: World, folder: Path, knows: Knower, held_out: list[str]) -> None:
    """Write all files to ``folder``: ``world.jsonl``, ``demo.jsonl``, ``minimal-pairs.jsonl``, ``held-out.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    records = edit_records(world)
    pairs = [{"paradigm": name, "good": good, "bad": bad} for name, good, bad in minimal_pairs(world.seed, PAIRS_EACH)]
    _write_lines(folder / "world.jsonl", [json.dumps(record) for record in records])
    _write_lines(folder / "demo.jsonl", [json.dumps(record) for record in demo_records(records, knows)])
    _write_lines(folder / "minimal-pairs.jsonl", [json.dumps(pair) for pair in pairs])
    _write_lines(folder / "held-out.txt", held_out)


def _write_lines(path: Path, lines: list[str]) -> None:
    """Write ``lines`` to ``path``, one a line."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
