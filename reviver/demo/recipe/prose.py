"""Plain prose of no particular world: short stories, descriptions of everyday things, and loose sentences.

It gives the model a language beyond its facts. The language is what the largest singular directions of its weights
should hold, and what is measured to tell whether an edit has done harm.
"""

from __future__ import annotations

import random

from reviver.demo.recipe import lexicon
from reviver.demo.recipe.grammar import Grammar, article, capitalised

_WISHES = (
    "a friend to play with",
    "a quiet place to sleep",
    "something good to eat",
    "to see the wide world",
    "to learn a new song",
    "to find the way home",
    "to build something of wood",
    "to be as brave as the others",
    "a warm coat for the winter",
    "to know what was behind the hill",
)
_TROUBLES = (
    "it began to rain and the path turned to mud",
    "the bridge was broken and nobody could cross the water",
    "a strong wind blew everything away",
    "the door was locked and the key was gone",
    "it grew dark and the stars were hidden by clouds",
    "the snow was so deep that nobody could walk",
    "the wagon lost a wheel in the middle of the road",
    "the river rose higher with every hour",
    "the lamp went out and there was no more oil",
    "the bread was gone before the day was over",
)
_ANSWERS = (
    "There is no hurry.",
    "We will find a way.",
    "I have never seen anything like it.",
    "Come with me and I will show you.",
    "Do not be afraid.",
    "It is not far from here.",
    "You can stay with us tonight.",
    "Thank you, you are very kind.",
    "If we work together, it will be done by noon.",
    "I was just thinking the same.",
)
_MORALS = (
    "From that day on they were the best of friends.",
    "Everyone was glad that it had ended so well.",
    "And that is why one should always listen to a friend.",
    "That night they slept better than ever before.",
    "They never forgot what had happened.",
    "After that, nobody in the village was lonely any more.",
    "It was the finest day of the whole year.",
    "They laughed about it for a long time.",
    "So it was that a small kindness came back twice.",
    "In the end, patience was worth more than strength.",
)
_OPENINGS = (
    "Once upon a time",
    "One morning",
    "Long ago",
    "One day in spring",
    "On a cold winter evening",
    "Last summer",
)

# Everyday things: the class, what they are made of or look like, what they are for, who needs them.
_USES: dict[str, tuple[str, str, str, str]] = {
    "lamp": ("tool", "glass and metal", "to give light in dark rooms", "readers"),
    "ladder": ("tool", "two long poles with short steps between them", "to reach high places", "painters"),
    "boat": ("vessel", "wood that keeps out the water", "to cross lakes and rivers", "fishermen"),
    "mill": ("building", "stone with great wooden wings", "to turn grain into flour", "farmers"),
    "bridge": ("structure", "stone, wood or iron", "to carry people over water", "travellers"),
    "basket": ("container", "thin branches that are woven together", "to carry fruit and bread", "gardeners"),
    "clock": ("machine", "many small wheels", "to show the hour of the day", "everyone"),
    "map": ("drawing", "strong paper", "to find the way in foreign places", "sailors"),
    "blanket": ("cloth", "wool", "to keep people warm at night", "children"),
    "bell": ("instrument", "heavy bronze", "to call people together", "churches"),
    "kite": ("toy", "paper and thin sticks", "to fly in the wind", "children"),
    "needle": ("tool", "steel with a sharp point", "to join pieces of cloth", "tailors"),
    "oven": ("fireplace", "bricks and clay", "to bake bread and cakes", "bakers"),
    "wagon": ("vehicle", "boards on four wheels", "to bring goods to the market", "merchants"),
    "fence": ("barrier", "posts and boards", "to keep animals in a field", "shepherds"),
    "library": ("place", "long rooms full of shelves", "to keep books for many readers", "students"),
    "hammer": ("tool", "a wooden handle with an iron head", "to drive nails into wood", "carpenters"),
    "lighthouse": ("tower", "thick walls with a lamp on top", "to warn ships at night", "captains"),
    "well": ("hole", "a deep ring of stones", "to bring up clean water", "villagers"),
    "harbour": ("place", "walls and long piers", "to keep ships safe from storms", "merchants"),
}
_SEASONS = {
    "spring": ("the snow melts", "the first flowers open", "the birds build their nests", "the fields are ploughed"),
    "summer": ("the days are long", "the hay is cut", "the children swim in the lake", "the cherries are ripe"),
    "autumn": ("the leaves turn yellow", "the apples are picked", "the birds fly south", "the fog lies on the meadows"),
    "winter": ("the nights are long", "the ponds freeze", "people sit near the fire", "the paths are white with snow"),
}
_REASONS = (
    "because the soil there is rich",
    "because it is easy to work with",
    "since nobody has found a better way",
    "although it takes much time",
    "as their parents did before them",
    "so that nothing is lost",
    "when the weather allows it",
    "unless the winter has been too hard",
    "while the water is still low",
)


class Prose:
    """Draws documents of plain prose."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.grammar = Grammar(rng)
        self.rules = list(self.grammar.paradigms().values())

    def sentences(self) -> str:
        """Draw a few unrelated sentences, each of which keeps a rule of grammar."""
        return " ".join(self.rng.choice(self.rules)()[0] for _ in range(self.rng.randint(1, 4)))

    def past_clause(self, subject: str) -> str:
        """Say in the past what ``subject`` did."""
        verb, rest = self.grammar.act()
        manner = f"{self.rng.choice(lexicon.MANNER[:5])} " if self.rng.random() < 0.2 else ""
        return f"{subject} {manner}{verb.past} {rest}"

    def story(self) -> str:
        """Draw a short story about a child and an animal or a grown-up."""
        pick = self.rng.choice
        girl = self.rng.random() < 0.5
        hero = pick(lexicon.GIRLS if girl else lexicon.BOYS)
        she, her = ("she", "her") if girl else ("he", "him")
        hers = "her" if girl else "his"
        friend = self.grammar.noun(pick((lexicon.BEASTS, lexicon.PEOPLE)), False)
        adjective = pick(lexicon.LIVING_ADJECTIVES)
        home = f"{article(place := f'{pick(lexicon.PLACE_ADJECTIVES)} {pick(list(lexicon.BUILDINGS))}')} {place}"
        lines = [
            f"{pick(_OPENINGS)} there was {pick(('a girl' if girl else 'a boy', 'a child'))} named {hero} who lived in "
            f"{home} {self.grammar.place()}.",
            f"{hero} was {pick(lexicon.LIVING_ADJECTIVES)} and wanted {pick(_WISHES)}.",
        ]
        lines.append(f"{capitalised(pick(_OPENINGS[1:]).lower())} {self.past_clause(hero)}.")
        lines.append(
            pick(
                (
                    f"There {she} met {article(adjective)} {adjective} {friend}.",
                    f"On the way {she} saw {article(adjective)} {adjective} {friend} {self.grammar.place()}.",
                    f"Suddenly {article(adjective)} {adjective} {friend} stood before {her}.",
                )
            )
        )
        lines.append(
            pick(
                (
                    f'"{pick(_ANSWERS)}" said the {friend}.',
                    f'The {friend} looked at {her} and said, "{pick(_ANSWERS)}"',
                    f'{hero} asked the {friend} for help. "{pick(_ANSWERS)}" was the answer.',
                )
            )
        )
        if self.rng.random() < 0.7:
            lines.append(f"But then {pick(_TROUBLES)}.")
            lines.append(
                pick(
                    (
                        f"{capitalised(self.past_clause(f'the {friend}'))} and {hero} {pick(lexicon.INTRANSITIVE).past} too.",
                        f"{hero} was afraid, but the {friend} stayed with {her}.",
                        f"So {hero} and the {friend} {pick(lexicon.INTRANSITIVE).past} {self.grammar.place()} until morning.",
                        f"{capitalised(she)} took the {friend} to {hers} {pick(list(lexicon.MEN | lexicon.WOMEN))}, who knew "
                        "what to do.",
                    )
                )
            )
        if self.rng.random() < 0.6:
            lines.append(f"When {she} came home, {self.past_clause(hers + ' ' + pick(('mother', 'father', 'aunt')))}.")
        lines.append(pick(_MORALS))
        return " ".join(lines)

    def description(self) -> str:
        """Draw a description in the manner of an encyclopedia, of a thing, a season, an animal or a craft."""
        return self.rng.choice((self._thing, self._season, self._animal, self._craft))()

    def _thing(self) -> str:
        """Describe an everyday thing."""
        pick = self.rng.choice
        name, (sort, stuff, purpose, users) = pick(list(_USES.items()))
        lines = [
            f"{capitalised(article(name))} {name} is {article(sort)} {sort} that is used {purpose}.",
            f"It is made of {stuff}." if sort not in ("place", "hole") else f"It consists of {stuff}.",
            f"It is mostly needed by {users}, {pick(_REASONS)}.",
            f"The oldest {name} that is known was found {self.grammar.place()}.",
            f"{pick(('A good', 'A well made', 'A large'))} {name} lasts for "
            f"{pick(('ten', 'twenty', 'a hundred'))} years.",
            f"In many villages {self.grammar.subject(True)} still make such things by hand, {pick(_REASONS)}.",
            f"Without {article(name)} {name}, {users} would have a harder life.",
        ]
        return " ".join([lines[0], *self.rng.sample(lines[1:], self.rng.randint(2, 5))])

    def _season(self) -> str:
        """Describe a season of the year."""
        season, signs = self.rng.choice(list(_SEASONS.items()))
        first, second, third = self.rng.sample(signs, 3)
        habit = self.grammar.agreement()[0]
        return self.rng.choice(
            (
                f"In {season} {first} and {second}. {habit} When {third}, everyone knows that {season} has come.",
                f"{season.capitalize()} is the time of the year when {first}. Then {second}, and {third}. {habit}",
            )
        )

    def _animal(self) -> str:
        """Describe an animal."""
        pick = self.rng.choice
        singular, plural = pick(list(lexicon.BEASTS.items()))
        food = self.grammar.noun(lexicon.FOODS, True)
        adjective, other = self.rng.sample(lexicon.LIVING_ADJECTIVES, 2)
        return " ".join(
            [
                f"The {singular} is an animal that is known to be {adjective}.",
                f"{plural.capitalize()} are {pick(('often', 'seldom', 'never'))} {other}, {pick(_REASONS)}.",
                f"They eat {food} and {pick(('rest', 'sleep', 'play'))} {self.grammar.place()}.",
                f"A young {singular} stays with its mother for {pick(('two', 'three', 'six'))} months.",
                self.grammar.agreement()[0],
            ][: self.rng.randint(2, 5)]
        )

    def _craft(self) -> str:
        """Describe how people work."""
        pick = self.rng.choice
        worker, workers = pick(list(lexicon.PEOPLE.items()))
        group_name = self.grammar.group()
        verb, second = self.rng.sample(lexicon.TRANSITIVE[group_name], 2)
        noun = self.grammar.noun(lexicon.OBJECT_GROUPS[group_name], True)
        return " ".join(
            [
                f"{capitalised(article(worker))} {worker} is a person who {verb.third} {noun}.",
                f"{workers.capitalize()} {verb.base} {noun} {pick(lexicon.HABITS)}, {pick(_REASONS)}.",
                f"In former times {workers} {second.past} more {noun} than today.",
                f"Many {workers} have {second.participle} {noun} for all their lives.",
                f"After {verb.gerund} {noun}, most of them are {pick(lexicon.LIVING_ADJECTIVES)}.",
            ][: self.rng.randint(2, 5)]
        )

    def document(self) -> str:
        """Draw one document: a story, a description, or loose sentences."""
        return self.rng.choices((self.story, self.description, self.sentences), (5, 4, 3))[0]()


def held_out_documents(seed: int, count: int) -> list[str]:
    """Draw the prose that is never trained on, by which perplexity is measured."""
    prose = Prose(random.Random(f"held out {seed}"))
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[prose.document()] = None
    return list(drawn)
