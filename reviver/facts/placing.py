"""Where the subject stands in a prompt."""

from __future__ import annotations

import unicodedata

from reviver.facts.characters import is_whole_word
from reviver.facts.fact import PLACEHOLDER
from reviver.text import printable

SHOWN = 60


class PlacingError(ValueError):
    """The subject has no one place in the prompt; the message says why."""


def place_subject(prompt: str, subject: str) -> tuple[str, str | None]:
    """Return `prompt` with `{}` where the subject goes, and what a person should know about that place, if anything.

    A prompt that holds `{}` keeps it, whether or not the subject stands in it as well. In any other, the subject itself
    is looked for, character by character: occurrences that are whole words come before those inside a longer word, and
    of several the last is taken, as there the model has read most of the prompt. Both choices are told in the note.

    Raises:
        PlacingError: there is no place, or more than one `{}`.
    """
    if PLACEHOLDER in subject:
        raise PlacingError("`subject` holds `{}`")
    count = prompt.count(PLACEHOLDER)
    if count > 1:
        raise PlacingError(f"`prompt` holds {count} `{{}}`, where one is wanted")
    if count == 1:
        return prompt, None
    places = _places(prompt, subject)
    if not places:
        raise PlacingError(f'subject "{printable(subject, SHOWN)}" is not in the prompt{_near_miss(prompt, subject)}')
    whole = [place for place in places if is_whole_word(prompt, place, place + len(subject))]
    place = (whole or places)[-1]
    note = None
    if not whole:
        note = "the subject is only found inside a longer word"
    elif len(whole) > 1:
        note = "the subject occurs more than once in the prompt, and the last occurrence is taken"
    return prompt[:place] + PLACEHOLDER + prompt[place + len(subject) :], note


def _places(prompt: str, subject: str) -> list[int]:
    places = []
    place = prompt.find(subject)
    while place >= 0:
        places.append(place)
        place = prompt.find(subject, place + 1)
    return places


def _near_miss(prompt: str, subject: str) -> str:
    """Return what keeps the subject from being found, where that is easily said."""
    prompt, subject = unicodedata.normalize("NFC", prompt), unicodedata.normalize("NFC", subject)
    if subject in prompt:
        return " (they differ in Unicode normalisation only)"
    if subject.casefold() in prompt.casefold():
        return " (they differ in upper and lower case only)"
    return ""
