"""Different subjects to look at the keys of: those of facts, or names that stand in ordinary text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from reviver.editing.model import EditableModel
from reviver.editing.targets import fact_rows
from reviver.editing.tokens import TokenRow, tokenize_rows
from reviver.facts.fact import Fact

CONTEXT = 200
"""How many characters before a name in a text are kept."""

# One or more words that begin with a capital and go on in small letters.
_NAME = re.compile(r"[^\W\d_]+(?:[ -][^\W\d_]+)*")
_OPENS_SENTENCE = re.compile(r"(?:^|[.!?:;\"“”'(\n])\s*$")


def draw_facts(facts: Sequence[Fact], count: int, *, seed: int) -> list[Fact]:
    """Return a seeded draw of at most `count` facts, no two about the same subject."""
    single = list({fact.subject: fact for fact in facts}.values())
    return single if len(single) <= count else random.Random(seed).sample(single, count)


def subjects_of_facts(model: EditableModel, facts: Sequence[Fact]) -> list[TokenRow]:
    """Return the prompts of facts up to their subjects, one row a fact."""
    return fact_rows(model, facts, ("",), targets=False)


def subjects_of_text(model: EditableModel, text: Sequence[Sequence[int]], count: int) -> list[TokenRow]:
    """Return at most `count` rows of text that end in different names.

    Args:
        model: the model.
        text: token ids.
        count: how many are wanted.
    """
    found: dict[str, tuple[str, int]] = {}
    for row in text:
        written = model.tokenizer.decode(row, skip_special_tokens=True)
        for start, end in names_in(written):
            # Half a word at the beginning of the context would be no word.
            before = written[max(0, start - CONTEXT) : start]
            context = before if start <= CONTEXT else before.partition(" ")[2]
            found.setdefault(written[start:end], (context + written[start:end], len(context) + end - start))
    chosen = list(found.values())[:count]
    return tokenize_rows(
        model.tokenizer,
        [prompt for prompt, _ in chosen],
        [""] * len(chosen),
        [end for _, end in chosen],
        window=model.window,
    )


def names_in(text: str) -> Iterator[tuple[int, int]]:
    """Yield where names stand in a text: words with capitals that do not merely open a sentence."""
    for match in _NAME.finditer(text):
        place = match.start()
        run: list[tuple[int, int]] = []
        for word in re.split(r"([ -])", match.group()):
            if len(word) > 1 and word.istitle():
                run.append((place, place + len(word)))
            elif word not in (" ", "-"):
                yield from _named(text, run)
                run = []
            place += len(word)
        yield from _named(text, run)


def _named(text: str, run: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    if run and _OPENS_SENTENCE.search(text[: run[0][0]]):
        run = run[1:]
    if run:
        yield run[0][0], run[-1][1]
