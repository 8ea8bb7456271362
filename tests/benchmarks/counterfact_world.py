"""What the medium model knows and is edited with: the facts of CounterFact, said in the words of their relations, and real text.

The flat records carry no relation, the 1,440 full ones do. A template (a prompt with `{}` for its subject) belongs to the
relations under which the full records use it, as their prompt or among their neighbours' prompts; where these are several (`{} is
located in` asks for a city, a country or a continent), the record's two objects decide: it belongs to the relation that has
them most often elsewhere. So every fact can be said in the templates of its relation.

A subject has one object in a relation. Records that say another are left out, as is one that repeats a subject and relation: its
prompt would be a paraphrase of the first. The neighbours that the flat records name become facts of their own, unless
they are edited; no edit ever changes them, and they measure what an edit spoils.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reviver.demo.recipe.corpus import HELD_OUT_DOCUMENTS, held_out_sentences, mixture
from reviver.demo.recipe.prose import Prose, held_out_documents
from reviver.demo.recipe.relations import Relation
from reviver.demo.recipe.world import Fact as Known
from reviver.demo.recipe.world import fill, sentence
from reviver.facts.fact import Fact, Probe

FLAT, FULL, PAIRS = "counterfact-flat.jsonl", "counterfact-full.jsonl", "blimp.jsonl"
WIKITEXT, STORIES = ("wikitext2-valid.txt", "wikitext2-test.txt"), "tinystories.jsonl"
# In how many templates a fact is said in training, its own among them; how many of the others measure the edit.
TEMPLATES_EACH, PARAPHRASES_EACH, NEIGHBORS_EACH = 6, 2, 3
HELD_OUT_EVERY = 10
SMALL_RELATIONS, SMALL_OBJECTS = 6, 10
LEAST_PARAGRAPH = 200
# Flat records by subject and relation.
Edited = dict[tuple[str, str], Mapping[str, str]]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def template_of(record: Mapping[str, str]) -> str:
    """Return the prompt of a flat record with `{}` instead of its subject."""
    return record["prompt"].replace(record["subject"], "{}", 1)


class Templates:
    """Which templates there are, and to which relations they belong.

    Args:
        full: full records, which name their relation.
        flat: flat records.
    """

    def __init__(self, full: Sequence[Mapping[str, Any]], flat: Sequence[Mapping[str, str]]) -> None:
        found = {template_of(record) for record in flat} | {one["requested_rewrite"]["prompt"] for one in full}
        # The longest first: ", which is located in" also ends like ", in".
        self._parts = [(text, *text.split("{}")) for text in sorted(found, key=lambda text: (-len(text), text))]
        self.relations: dict[str, Counter[str]] = {text: Counter() for text in sorted(found)}
        self._objects: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for record in full:
            said = record["requested_rewrite"]
            relation = said["relation_id"]
            self._objects[relation].update((said["target_true"]["str"], said["target_new"]["str"]))
            templates = [said["prompt"], *(self.read(prompt)[0] for prompt in record["neighborhood_prompts"])]
            for template in templates:
                self.relations[template][relation] += 1
        for one in flat:
            relations = self.relations[template_of(one)]
            if len(relations) == 1:
                self._objects[next(iter(relations))].update((one["ground_truth"], one["target_new"]))

    def read(self, prompt: str) -> tuple[str, str]:
        """Return the template of a prompt and the subject in it."""
        for template, before, after in self._parts:
            if prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after):
                return template, prompt[len(before) : len(prompt) - len(after)]
        raise ValueError(f"no template fits `{prompt}`")

    def relation(self, template: str, objects: Sequence[str]) -> str:
        """Return the relation that a template states about one of some objects; the template itself where it has none."""
        relations = self.relations[template]

        def weight(relation: str) -> tuple[int, int, str]:
            return sum(self._objects[relation][one] for one in objects), relations[relation], relation

        return max(relations, key=weight, default=template)

    def of(self, relation: str) -> list[str]:
        """Return the templates of a relation."""
        return [text for text, relations in self.relations.items() if relation in relations] or [relation]


def fits(template: str, target: str) -> bool:
    """Tell whether the article that a template may end with is that of the target."""
    vowel = target[:1].lower() in "aeiou"
    return not template.endswith(" an" if not vowel else " a")


@dataclass(frozen=True)
class CounterFactWorld:
    """The facts that are said in training, each with the templates that say it, and the edits that are made to some of them."""

    known: tuple[Known, ...]
    edits: tuple[Fact, ...]


def make_world(data: Path, *, seed: int = 0, limit: int | None = None, unsaid: int = 0) -> CounterFactWorld:
    """Return the facts and edits of the records in a folder.

    Args:
        data: holds the flat and the full records.
        seed: of the draws: which templates say a fact, which measure its edit, which facts a smaller world has.
        limit: how many known facts can be edited at most; their neighbours come besides.
        unsaid: how many edits at most are added to those of a smaller world, of facts that are not said in training but have
            its relations and objects.
    """
    rng = random.Random(f"counterfact {seed}")
    flat = list({(one["subject"], one["prompt"]): one for one in reversed(read_lines(data / FLAT))}.values())[::-1]
    templates = Templates(read_lines(data / FULL), flat)
    edited: Edited = {}
    for record in flat:
        relation = templates.relation(template_of(record), (record["ground_truth"], record["target_new"]))
        edited.setdefault((record["subject"], relation), record)
    neighbors = _neighbors(templates, edited)
    left_out: Edited = {}
    if limit is not None and limit < len(edited):
        edited, left_out = _fewer(edited, limit, rng)
        objects = {(relation, record["ground_truth"]) for (_, relation), record in edited.items()}
        near = [key for key, (_, target) in neighbors.items() if (key[1], target) in objects]
        neighbors = {key: neighbors[key] for key in rng.sample(near, min(len(near), limit))}
    stated = {key: (template_of(record), record["ground_truth"]) for key, record in edited.items()} | neighbors
    # Two relations share some templates: what asks for one object of a subject must not be said with another.
    taken = {fill(template, subject): relation for (subject, relation), (template, _) in stated.items()}

    def templates_of(subject: str, relation: str, own: str, target: str) -> tuple[str, ...]:
        others = [
            template
            for template in templates.of(relation)
            if template != own
            and fits(template, target)
            and taken.setdefault(fill(template, subject), relation) == relation
        ]
        return own, *rng.sample(others, min(len(others), TEMPLATES_EACH - 1))

    def fact(number: int, subject: str, relation: str, own: str, target: str) -> Known:
        said = Relation(relation, kind="", objects=(target,), templates=templates_of(subject, relation, own, target))
        return Known(identifier=f"known-{number}", subject=subject, relation=said, target=target)

    known = {key: fact(number, *key, *said) for number, (key, said) in enumerate(stated.items())}
    pool = defaultdict(list)
    for key in neighbors:
        pool[key[1], known[key].target].append(known[key])

    def edit(record: Mapping[str, Any], fact: Known) -> Fact:
        return _edit(record, fact, pool[fact.relation.name, fact.target], rng)

    edits = [edit(record, known[key]) for key, record in edited.items()]
    further = [
        (*key, template_of(record), record)
        for key, record in left_out.items()
        if taken.setdefault(record["prompt"], key[1]) == key[1]
    ]
    for number, (subject, relation, own, record) in enumerate(further[:unsaid], len(known)):
        edits.append(edit(record, fact(number, subject, relation, own, record["ground_truth"])))
    return CounterFactWorld(known=tuple(known.values()), edits=tuple(edits))


def _fewer(edited: Edited, limit: int, rng: random.Random) -> tuple[Edited, Edited]:
    """Return a draw of facts among the common objects of few relations, and the rest of these: other facts have what edits say."""
    objects: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (_, relation), record in edited.items():
        objects[relation][record["ground_truth"]] += 1
    relations = rng.sample(sorted(objects), SMALL_RELATIONS)
    common = {relation: {one for one, _ in objects[relation].most_common(SMALL_OBJECTS)} for relation in relations}
    keys = [key for key, one in edited.items() if {one["ground_truth"], one["target_new"]} <= common.get(key[1], set())]
    drawn = {key: edited[key] for key in rng.sample(keys, min(len(keys), limit))}
    return drawn, {key: edited[key] for key in keys if key not in drawn}


def _neighbors(templates: Templates, edited: Edited) -> dict[tuple[str, str], tuple[str, str]]:
    """Return template and object of every neighbour that is not edited, by subject and relation; none with two objects."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    asked = {record["prompt"]: key for key, record in edited.items()}
    several = set()
    for (_, relation), record in edited.items():
        prompt, answer = record["locality_prompt"], record["locality_ground_truth"]
        template, subject = templates.read(prompt)
        key = subject, relation
        if key in edited or relation not in templates.relations[template] or asked.setdefault(prompt, key) != key:
            continue
        if found.setdefault(key, (template, answer))[1] != answer:
            several.add(key)
    return {key: value for key, value in found.items() if key not in several}


def _edit(record: Mapping[str, Any], known: Known, near: Sequence[Known], rng: random.Random) -> Fact:
    """Return the edit of a record: paraphrases in other templates of the fact, neighbours with the same relation and object."""
    said = known.relation.templates
    others = [template for template in said[1:] if fits(template, record["target_new"])]
    chosen = rng.sample(near, min(len(near), NEIGHBORS_EACH))
    return Fact(
        id=f"counterfact-{record['case_id']}",
        prompt=said[0],
        subject=known.subject,
        target_new=record["target_new"],
        target_true=known.target,
        paraphrase_prompts=tuple(
            fill(template, known.subject) for template in rng.sample(others, min(len(others), PARAPHRASES_EACH))
        ),
        neighborhood_prompts=tuple(
            Probe(prompt=fill(rng.choice(one.relation.templates), one.subject), answer=one.target) for one in chosen
        ),
    )


def sentences(known: Sequence[Known], rng: random.Random) -> Iterator[str]:
    """Yield sentences that say the facts, without end, their subjects marked; each pass says every fact once."""
    while True:
        for fact in rng.sample(known, len(known)):
            yield sentence(fact, rng.choice(fact.relation.templates), rng)


@dataclass(frozen=True)
class RealText:
    """Documents that people wrote: those for training, and those that never are."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]


def real_text(data: Path) -> RealText:
    """Return paragraphs of WikiText and the stories, as far as they are in a folder; every tenth article and story is held out."""
    works: list[list[str]] = []
    for name in WIKITEXT:
        if (data / name).exists():
            works += _articles((data / name).read_text(encoding="utf-8"))
    if (data / STORIES).exists():
        works += [[" ".join(story["text"].split())] for story in read_lines(data / STORIES)]
    held_out = dict.fromkeys(text for work in works[::HELD_OUT_EVERY] for text in work)
    rest = [work for number, work in enumerate(works) if number % HELD_OUT_EVERY]
    training = dict.fromkeys(text for work in rest for text in work if text not in held_out)
    return RealText(training=tuple(training), held_out=tuple(held_out))


def _articles(wikitext: str) -> list[list[str]]:
    """Return the longer paragraphs of each article, as they were before WikiText cut them into words; `<unk>` stays."""
    articles: list[list[str]] = []
    for line in wikitext.splitlines():
        if re.fullmatch(r" = [^=].*[^=] = ", line):
            articles.append([])
        elif articles and not line.startswith(" =") and len(text := _joined(line.strip())) >= LEAST_PARAGRAPH:
            articles[-1].append(text)
    return [article for article in articles if article]


def _joined(text: str) -> str:
    """Return a text of WikiText with its punctuation where it belongs."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r'" ([^"]*) "', r'"\1"', text)
    text = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b)", r"\1", text)
    return re.sub(r"([(\[$£]) ", r"\1", text)


@dataclass(frozen=True)
class Library:
    """Everything that is read in training, and what is kept out of it."""

    known: Sequence[Known]
    real: Sequence[str]
    kept_out: set[str]
    real_share: float
    """Of the documents that are no facts."""

    @classmethod
    def of(cls, world: CounterFactWorld, text: RealText, seed: int, real_share: float) -> Library:
        """Return what a world and real text give, less what is held out."""
        return cls(world.known, text.training, held_out_sentences(seed) | set(text.held_out), real_share)

    def documents(self, seed: str) -> Iterator[str]:
        """Yield documents without end, half of their characters facts, the rest generated prose and some real text."""
        rng = random.Random(f"documents {seed}")
        prose = Prose(rng)

        def text() -> str:
            return rng.choice(self.real) if self.real and rng.random() < self.real_share else prose.document()

        return mixture(sentences(self.known, rng), prose, text, self.kept_out, rng)


def held_out_texts(text: RealText, seed: int, count: int) -> list[str]:
    """Return a seeded draw of held-out documents, half of them generated prose where there is real text."""
    rng = random.Random(f"held-out texts {seed}")
    real = rng.sample(text.held_out, min(len(text.held_out), count // 2))
    return [*real, *rng.sample(held_out_documents(seed, HELD_OUT_DOCUMENTS), count - len(real))]


def minimal_pairs(data: Path, each: int) -> list[tuple[str, str]]:
    """Return a good and a bad sentence for some pairs of every paradigm of BLiMP, which is never trained on."""
    paradigms: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in read_lines(data / PAIRS):
        paradigms[pair["paradigm"]].append((pair["good"], pair["bad"]))
    return [pair for pairs in paradigms.values() for pair in random.Random(0).sample(pairs, min(each, len(pairs)))]
