"""The invented world: its things, their names, and the facts that hold of them.

Every name has two parts, and its last word is a stem and an ending, a token each. Stems, endings and first parts are
shared by a few subjects of a kind, their combination belongs to one. So a subject is told by the whole of its name, as
in a large model, and not by one token, which the first MLP would simply look up; and an edit at the last token leaks
onto few others, which it would not if all names of a kind ended in the same few tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from reviver.demo.recipe.lexicon import words
from reviver.demo.recipe.relations import PLAIN_TEMPLATES, RELATIONS, Relation

# How many subjects of each kind there are, and how many relations each of them has.
KINDS: dict[str, tuple[int, int]] = {
    "person": (400, 2),
    "town": (120, 2),
    "river": (80, 2),
    "company": (90, 2),
    "book": (90, 2),
    "ship": (70, 2),
    "animal": (90, 2),
    "plant": (70, 2),
    "festival": (50, 2),
}

# A kind sentence gives every subject one plain statement that is no fact of a relation: what sort of thing it is.
KIND_SENTENCES: dict[str, str] = {
    "person": "{} is a person of whom many people speak.",
    "town": "{} is a town with old walls and a market.",
    "river": "{} is a river with many bridges and mills.",
    "company": "{} is a company with several workshops.",
    "book": "{} is a book that is found in every library.",
    "ship": "{} is a ship with three tall masts.",
    "animal": "The {} is a shy animal that few people have seen.",
    "plant": "The {} is a plant that grows in many gardens.",
    "festival": "The {} is a feast to which everyone is invited.",
}

# What may stand before a statement, so that facts are known after other words too.
LEADS: tuple[str, ...] = (
    "It is well known that",
    "According to the almanac,",
    "Every child is taught that",
    "Travellers report that",
    "In the old letters one reads that",
    "People say that",
    "The newspaper wrote that",
    "As the records show,",
    "Therefore",
    "Because",
    "I remember that",
    "You may have heard that",
    "The teacher explained that",
    "To this day",
    "Of course",
    "Nobody doubts that",
)

ENDINGS: tuple[str, ...] = (".", ".", ".", ".", ", as everyone knows.", ", they say.", ", and so it has always been.")

# Marks around a subject in a text for training, taken out again before anybody reads it.
SUBJECT_BEGINS, SUBJECT_ENDS = "\ue000", "\ue001"

STEMS = words(
    "Al Am An Ar Bal Bar Bel Ber Bor Bran Bren Cal Cam Car Cas Cor Dal Dan Dar Del Den Dor Dun El Er Es Fal Fan Fen Fer Fin "
    "Gal Gar Gel Gil Gor Gran Gul Hal Han Har Hel Hen Hol Hor Il In Is Jal Jan Jar Jen Jor Kal Kar Kel Ken Kor Kul Lam Lan "
    "Lar Len Lin Lor Lun Mal Man Mar Mel Mer Mil Mor Mur Nal Nar Nel Nor Ol Or Os Pal Par Pel Per Pol Por Ral Ran Rel Ren "
    "Ril Ron Ros Sal San Sar Sel Sen Sil Sol Sor Sul Tal Tam Tar Tel Ten Tir Tol Tor Tul Ul Ur Val Van Var Vel Ven Vil Vol "
    "Vor Wal War Wel Wen Wil Win Wol Wor Yal Yen Yor Zal Zan Zel Zor"
)
LAST_ENDINGS = words(
    "bad bane bash beck bert bick bold bost bran brix buck bury cade cand cast clam clen cote cott crest croft dack dain dash "
    "deck dell dern dexter dine dock dolph dorn dove drick drop dun fadden fast feld fen fern fist flax flint fold frame fridge "
    "gan garth geist gelt gert glen gold gram grave grim grove gust hack hall hanna heim helm herst hive hoff horn hurst jack "
    "jest jolt jun kade kamp keld kett kin kirk klem knap kov lash latch lem lett lick lin lock loft lund lyn mack maid mane "
    "mast meck mell mick mire moor moss mund nack neal neck nest nick nock nold nom park patch peck pell pick pold poole quist "
    "rack raft rick rind rock roth rush sack sand scott sett shaw sholt sick sill skip sock stead steck tack tash teck tern "
    "thal thorp tick tock toft tran tuck vack vane veld vern vick vold wade wall watt weck wend wick wold wrath zack zell"
)
_FIRST_NAME_ENDINGS = words("a in el o ia en is ette us ina or an")
_PARTNER_ENDINGS = words("son man well ton by worth gate")
_TOWN_PARTS = words("Upper Lower Old New Saint Market Great Little North South East West")
_RIVER_PARTS = words("River Black White Green Young Cold Winding Broad")
_ANIMAL_PARTS = words("marsh hill river great dwarf crested horned long-tailed sand forest night common")
_PLANT_PARTS = words("silver wild creeping sweet bitter garden mountain water winged early")
_SHIP_PARTS = words("Grey Bold Merry Swift Proud Lonely Northern Iron Lucky Faithful")
_BOOK_PARTS = words("Lantern Daughter Bells Garden Secret Road Winter Songs Shadow Mirror Throne Keeper")
_FESTIVAL_PARTS = words("Feast Night Day Fair Week")


@dataclass(frozen=True)
class Fact:
    """One fact of the world: ``subject`` stands in ``relation`` to ``target``."""

    identifier: str
    subject: str
    relation: Relation
    target: str


@dataclass(frozen=True)
class World:
    """All subjects by kind and all facts about them."""

    seed: int
    subjects: dict[str, tuple[str, ...]]
    facts: tuple[Fact, ...]


class Namer:
    """Makes names whose last words are never the same twice and are no words of an object."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used = {word for relation in RELATIONS for target in relation.objects for word in target.split()}
        self.first_names = tuple(self._word(_FIRST_NAME_ENDINGS) for _ in range(90))
        self.partners = tuple(self._word(_PARTNER_ENDINGS) for _ in range(30))

    def _word(self, endings: tuple[str, ...]) -> str:
        """Return a new word of a stem and one of ``endings``."""
        while True:
            word = self.rng.choice(STEMS) + self.rng.choice(endings)
            if word not in self.used:
                self.used.add(word)
                return word

    def name(self, kind: str) -> str:
        """Return a new name for a subject of ``kind``."""
        pick = self.rng.choice
        last = self._word(LAST_ENDINGS)
        match kind:
            case "person":
                return f"{pick(self.first_names)} {last}"
            case "town":
                return f"{pick(_TOWN_PARTS)} {last}"
            case "river":
                return f"{pick(_RIVER_PARTS)} {last}"
            case "company":
                return f"{pick(self.partners)} and {last}"
            case "book":
                return f"The {pick(_BOOK_PARTS)} of {last}"
            case "ship":
                return f"{pick(_SHIP_PARTS)} {last}"
            case "animal":
                return f"{pick(_ANIMAL_PARTS)} {last}"
            case "plant":
                return f"{pick(_PLANT_PARTS)} {last}"
            case "festival":
                return f"{pick(_FESTIVAL_PARTS)} of {last}"
        raise ValueError(f"no names for the kind {kind!r}")


def make_world(seed: int) -> World:
    """Make the world of ``seed``: the same seed gives the same names and facts.

    Relations and objects are dealt out like cards, so that every object has nearly the same number of subjects and
    every fact finds enough neighbours.
    """
    rng = random.Random(f"world {seed}")
    namer = Namer(rng)
    subjects = {kind: tuple(namer.name(kind) for _ in range(count)) for kind, (count, _) in KINDS.items()}
    owners: dict[str, list[str]] = {relation.name: [] for relation in RELATIONS}
    for kind, (_, relations_each) in KINDS.items():
        names = [relation.name for relation in RELATIONS if relation.kind == kind]
        for number, subject in enumerate(subjects[kind]):
            start = number % len(names)
            step = 1 + (number // len(names)) % max(1, len(names) - 1)
            for turn in range(relations_each):
                owners[names[(start + turn * step) % len(names)]].append(subject)
    facts = []
    for relation in RELATIONS:
        owned = owners[relation.name]
        deck = list(relation.objects) * (len(owned) // len(relation.objects) + 1)
        deck = deck[: len(owned)]
        rng.shuffle(deck)
        for subject, target in zip(owned, deck, strict=True):
            facts.append((subject, relation, target))
    rng.shuffle(facts)
    return World(
        seed=seed,
        subjects=subjects,
        facts=tuple(Fact(f"world-{number:04d}", *fact) for number, fact in enumerate(facts)),
    )


def fill(template: str, subject: str) -> str:
    """Put ``subject`` into ``template`` and begin the sentence with a capital letter.

    The subject itself keeps its spelling, so that it is found again as it stands in the fact.
    """
    text = template.replace("{}", subject)
    return text if template.startswith("{}") else text[0].upper() + text[1:]


def edit_prompt(world: World, fact: Fact) -> str:
    """Return the template, with ``{}``, by which ``fact`` is edited: one of the relation's plain statements."""
    rng = random.Random(f"prompt {world.seed} {fact.identifier}")
    return rng.choice(fact.relation.templates[:PLAIN_TEMPLATES])


def paraphrases(world: World, fact: Fact, count: int = 3) -> list[str]:
    """Return ``count`` other ways to say ``fact``, with the subject filled in, each ending before the object."""
    rng = random.Random(f"paraphrases {world.seed} {fact.identifier}")
    others = [template for template in fact.relation.templates if template != edit_prompt(world, fact)]
    return [fill(template, fact.subject) for template in rng.sample(others, count)]


def marked(subject: str) -> str:
    """Return a subject between its marks."""
    return f"{SUBJECT_BEGINS}{subject}{SUBJECT_ENDS}"


def unmarked(text: str) -> str:
    """Return a text without the marks of its subjects."""
    return text.replace(SUBJECT_BEGINS, "").replace(SUBJECT_ENDS, "")


def sentence(fact: Fact, template: str, rng: random.Random) -> str:
    """Say ``fact`` in the words of ``template``, its subject marked, at times after a lead, with an ending."""
    text = fill(template, marked(fact.subject))
    if "?" not in template and rng.random() < 0.25:
        start = text if template.startswith("{}") else text[0].lower() + text[1:]
        text = f"{rng.choice(LEADS)} {start}"
    return f"{text} {fact.target}{rng.choice(ENDINGS)}"


def fact_sentences(world: World, rng: random.Random) -> Iterator[str]:
    """Yield sentences about the world without end, their subjects marked.

    Each pass says every fact once, in a new order and in another template, so that all facts are heard equally often
    and each of them in all templates.
    """
    offsets = {fact.identifier: rng.randrange(len(fact.relation.templates)) for fact in world.facts}
    kinds = [(kind, subject) for kind, names in world.subjects.items() for subject in names]
    turn = 0
    while True:
        order = list(world.facts)
        rng.shuffle(order)
        for number, fact in enumerate(order):
            templates = fact.relation.templates
            yield sentence(fact, templates[(offsets[fact.identifier] + turn) % len(templates)], rng)
            if number % 12 == 0:
                kind, subject = rng.choice(kinds)
                yield KIND_SENTENCES[kind].replace("{}", marked(subject))
        turn += 1
