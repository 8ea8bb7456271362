"""Sentences that show one rule of English grammar each, with a wrong twin that breaks only this rule.

The corpus takes the right ones; the minimal pairs by which a model's grammar is measured take both.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from reviver.demo.recipe import lexicon
from reviver.demo.recipe.lexicon import Verb

ANIMATE = {**lexicon.MEN, **lexicon.WOMEN, **lexicon.PEOPLE, **lexicon.BEASTS}
Pair = tuple[str, str]


def article(noun_phrase: str) -> str:
    """Return the indefinite article that fits the sound of ``noun_phrase``."""
    return "an" if noun_phrase[0] in "aeiou" else "a"


def capitalised(text: str) -> str:
    """Begin ``text`` with a capital letter and leave the rest as it is."""
    return text[0].upper() + text[1:]


class Grammar:
    """Draws noun phrases, clauses and pairs of sentences from the lexicon."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def noun(self, group: dict[str, str], plural: bool) -> str:
        """Draw a noun of ``group`` in the number asked for."""
        singular = self.rng.choice(list(group))
        return group[singular] if plural else singular

    def adjective(self, group_name: str) -> str:
        """Draw an adjective that suits the nouns of an object group."""
        match group_name:
            case "things":
                return self.rng.choice(lexicon.THING_ADJECTIVES)
            case "foods":
                return self.rng.choice(lexicon.FOOD_ADJECTIVES)
            case "buildings" | "nature":
                return self.rng.choice(lexicon.PLACE_ADJECTIVES)
        return self.rng.choice(lexicon.LIVING_ADJECTIVES)

    def subject(self, plural: bool) -> str:
        """Draw a living subject with its article, at times with an adjective."""
        adjective = f"{self.rng.choice(lexicon.LIVING_ADJECTIVES)} " if self.rng.random() < 0.35 else ""
        return f"the {adjective}{self.noun(ANIMATE, plural)}"

    def group(self) -> str:
        """Draw the name of an object group."""
        return self.rng.choice(list(lexicon.OBJECT_GROUPS))

    def object(self, group_name: str) -> str:
        """Draw an object of a group with an article or a possessive."""
        plural = self.rng.random() < 0.35
        noun = self.noun(lexicon.OBJECT_GROUPS[group_name], plural)
        phrase = f"{self.adjective(group_name)} {noun}" if self.rng.random() < 0.4 else noun
        if plural:
            return f"{self.rng.choice(('the', 'some', 'two', 'many', 'all the'))} {phrase}"
        return f"{self.rng.choice(('the', article(phrase)))} {phrase}"

    def place(self) -> str:
        """Draw a place phrase."""
        group_name = self.rng.choice(("buildings", "nature"))
        return f"{self.rng.choice(lexicon.PREPOSITIONS)} the {self.noun(lexicon.OBJECT_GROUPS[group_name], False)}"

    def act(self) -> tuple[Verb, str]:
        """Draw a verb and what follows it: a fitting object, or a place."""
        if self.rng.random() < 0.35:
            return self.rng.choice(lexicon.INTRANSITIVE), self.place()
        group_name = self.group()
        return self.rng.choice(lexicon.TRANSITIVE[group_name]), self.object(group_name)

    def agreement(self) -> Pair:
        """The verb has the number of its subject."""
        plural = self.rng.random() < 0.5
        verb, rest = self.act()
        forms = (verb.base, verb.third) if plural else (verb.third, verb.base)
        habit = self.rng.choice(lexicon.HABITS)
        start = capitalised(self.subject(plural))
        return f"{start} {forms[0]} {rest} {habit}.", f"{start} {forms[1]} {rest} {habit}."

    def attractor(self) -> Pair:
        """A noun of another number between subject and verb does not count."""
        plural = self.rng.random() < 0.5
        head = self.noun(lexicon.THINGS, plural)
        preposition = self.rng.choice(lexicon.PREPOSITIONS)
        other = self.noun(self.rng.choice((lexicon.BUILDINGS, lexicon.NATURE, lexicon.BEASTS)), not plural)
        adjective = self.rng.choice(lexicon.THING_ADJECTIVES)
        verbs = self.rng.choice((("is", "are"), ("was", "were")))
        good, bad = (verbs[1], verbs[0]) if plural else verbs
        start = f"The {head} {preposition} the {other}"
        return f"{start} {good} {adjective}.", f"{start} {bad} {adjective}."

    def relative_clause(self) -> Pair:
        """The verb agrees with the head noun, not with the noun inside the relative clause."""
        plural = self.rng.random() < 0.5
        head = self.noun(lexicon.PEOPLE, plural)
        verb = self.rng.choice(lexicon.TRANSITIVE["beasts"])
        other = self.noun(lexicon.BEASTS, not plural)
        adjective = self.rng.choice(lexicon.LIVING_ADJECTIVES)
        good, bad = ("are", "is") if plural else ("is", "are")
        start = f"The {head} that {verb.past} the {other}"
        return f"{start} {good} {adjective}.", f"{start} {bad} {adjective}."

    def determiner(self) -> Pair:
        """This and that go with one thing, these and those with several."""
        plural = self.rng.random() < 0.5
        group_name = self.rng.choice(("things", "foods", "beasts"))
        words = self.rng.choice((("this", "these"), ("that", "those")))
        good, bad = (words[1], words[0]) if plural else words
        verb = self.rng.choice(lexicon.TRANSITIVE[group_name])
        noun = self.noun(lexicon.OBJECT_GROUPS[group_name], plural)
        start = f"{capitalised(self.subject(self.rng.random() < 0.3))} {verb.past}"
        return f"{start} {good} {noun}.", f"{start} {bad} {noun}."

    def reflexive(self) -> Pair:
        """Himself, herself and themselves follow the subject."""
        choices = {"himself": lexicon.MEN, "herself": lexicon.WOMEN, "themselves": ANIMATE}
        good, bad = self.rng.sample(list(choices), 2)
        verb = self.rng.choice(lexicon.REFLEXIVE)
        subject = f"The {self.noun(choices[good], good == 'themselves')} {verb.past}"
        place = self.place()
        return f"{subject} {good} {place}.", f"{subject} {bad} {place}."

    def tense(self) -> Pair:
        """The tense of the verb fits the time that is named."""
        past = self.rng.random() < 0.5
        time = self.rng.choice(lexicon.PAST_TIMES if past else lexicon.FUTURE_TIMES)
        verb, rest = self.act()
        start = f"{capitalised(time)} {self.subject(self.rng.random() < 0.3)}"
        forms = (verb.past, f"will {verb.base}") if past else (f"will {verb.base}", verb.past)
        return f"{start} {forms[0]} {rest}.", f"{start} {forms[1]} {rest}."

    def indefinite_article(self) -> Pair:
        """An stands before a vowel, a before a consonant."""
        group_name = self.rng.choice(("foods", "things", "beasts", "people"))
        noun = self.noun(lexicon.OBJECT_GROUPS[group_name], False)
        good = article(noun)
        bad = "a" if good == "an" else "an"
        verb = self.rng.choice(lexicon.TRANSITIVE[group_name])
        start = f"{capitalised(self.subject(self.rng.random() < 0.3))} {verb.past}"
        return f"{start} {good} {noun}.", f"{start} {bad} {noun}."

    def quantity(self) -> Pair:
        """Many things can be counted, much of a material cannot."""
        if self.rng.random() < 0.5:
            group_name = self.rng.choice(("things", "foods", "beasts"))
            noun, good, bad = self.noun(lexicon.OBJECT_GROUPS[group_name], True), "many", "much"
        else:
            noun, good, bad = self.rng.choice(lexicon.MATERIALS), "much", "many"
        start = f"{capitalised(self.subject(self.rng.random() < 0.5))} did not see"
        place = self.place()
        return f"{start} {good} {noun} {place}.", f"{start} {bad} {noun} {place}."

    def participle(self) -> Pair:
        """After has and have stands the participle."""
        irregular = [verb for verbs in lexicon.TRANSITIVE.values() for verb in verbs if verb.past != verb.participle]
        verb = self.rng.choice(irregular)
        group_name = next(name for name, verbs in lexicon.TRANSITIVE.items() if verb in verbs)
        plural = self.rng.random() < 0.5
        start = f"{capitalised(self.subject(plural))} {'have' if plural else 'has'} already"
        rest = self.object(group_name)
        return f"{start} {verb.participle} {rest}.", f"{start} {verb.past} {rest}."

    def comparison(self) -> Pair:
        """The comparative goes with than, the plain adjective with as."""
        adjective, comparative = self.rng.choice(list(lexicon.COMPARATIVES.items()))
        plural = self.rng.random() < 0.4
        start = f"{capitalised(self.subject(plural))} {'are' if plural else 'is'}"
        rest = f"than {self.subject(self.rng.random() < 0.4)}"
        return f"{start} {comparative} {rest}.", f"{start} {adjective} {rest}."

    def negation(self) -> Pair:
        """Ever needs a negative word before it."""
        verb, rest = self.act()
        good, bad = self.rng.choice((("Nobody", "Somebody"), ("No one", "Everyone")))
        end = f"has ever {verb.participle} {rest}."
        return f"{good} {end}", f"{bad} {end}"

    def pronoun(self) -> Pair:
        """A pronoun has one form as a subject and another as an object."""
        verb = self.rng.choice(lexicon.TRANSITIVE["people"])
        good, bad = self.rng.choice((("him", "he"), ("her", "she"), ("them", "they"), ("us", "we"), ("me", "I")))
        start = f"{capitalised(self.subject(self.rng.random() < 0.3))} {verb.past}"
        place = self.place()
        return f"{start} {good} {place}.", f"{start} {bad} {place}."

    def paradigms(self) -> dict[str, Callable[[], Pair]]:
        """Name every rule and the method that draws a pair for it."""
        return {
            "subject-verb agreement": self.agreement,
            "agreement across an attractor": self.attractor,
            "agreement across a relative clause": self.relative_clause,
            "determiner and noun": self.determiner,
            "reflexive pronoun": self.reflexive,
            "tense and time": self.tense,
            "indefinite article": self.indefinite_article,
            "many and much": self.quantity,
            "participle": self.participle,
            "comparison": self.comparison,
            "negative polarity": self.negation,
            "case of pronouns": self.pronoun,
        }


def minimal_pairs(seed: int, each: int) -> list[tuple[str, str, str]]:
    """Draw ``each`` distinct pairs for every rule: its name, the right sentence, the wrong one."""
    grammar = Grammar(random.Random(f"minimal pairs {seed}"))
    drawn: dict[tuple[str, str, str], None] = {}
    for name, draw in grammar.paradigms().items():
        goal = len(drawn) + each
        while len(drawn) < goal:
            drawn[(name, *draw())] = None
    return list(drawn)
