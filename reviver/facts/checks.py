"""What only shows when facts are looked at together: repetitions, contradictions, ids, and what a round should know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reviver.facts.fact import ID_DIGITS, Fact, fact_id
from reviver.text import plural, printable

OnConflict = Literal["error", "last"]
SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a record cannot be used, with the line on which it begins."""

    line: int
    message: str


class Gathering:
    """The facts of one file, kept free of repetitions and contradictions as they come in."""

    def __init__(self, on_conflict: OnConflict) -> None:
        self._on_conflict = on_conflict
        self._facts: list[Fact | None] = []
        self._lines: list[int] = []
        self._index_of_key: dict[tuple[str, str], int] = {}
        self._key_of_id: dict[str, tuple[str, str]] = {}
        self._first_duplicate: tuple[int, int] | None = None
        self._first_replaced: tuple[int, int] | None = None
        self._replaced = 0
        self.duplicates = 0
        self.contradictions = 0

    def __len__(self) -> int:
        return len(self._index_of_key)

    def add(self, fact: Fact, line: int) -> str | None:
        """Take in the next fact of the file; return what keeps it out, or None.

        A fact with the subject, prompt and target of an earlier one is a duplicate and dropped, its evaluation prompts
        with it. With another target it contradicts the earlier one: a fault, or, with `on_conflict="last"`, its
        successor.
        """
        key = fact.key
        index = self._index_of_key.get(key)
        if index is not None:
            earlier = self._facts[index]
            if earlier is not None and earlier.target_new == fact.target_new:
                self.duplicates += 1
                self._first_duplicate = self._first_duplicate or (line, self._lines[index])
                return None
            if earlier is not None and self._on_conflict == "error":
                self.contradictions += 1
                return _contradiction(fact, earlier, self._lines[index])
        if self._key_of_id.get(fact.id, key) != key:
            longer = fact_id(fact.prompt, fact.subject, fact.target_new, digits=2 * ID_DIGITS)
            if longer[:ID_DIGITS] != fact.id:
                other = self._index_of_key[self._key_of_id[fact.id]]
                return f'the id "{printable(fact.id, SHOWN)}" belongs to another fact, on line {self._lines[other]}'
            # The id was derived from the fact and, by a chance of one in 10^14 for any two, is that of another one too.
            fact = replace(fact, id=longer)
        if index is not None:
            self._drop(index, line)
        self._index_of_key[key] = len(self._facts)
        self._key_of_id[fact.id] = key
        self._facts.append(fact)
        self._lines.append(line)
        return None

    def _drop(self, index: int, line: int) -> None:
        earlier = self._facts[index]
        if earlier is not None:
            self._key_of_id.pop(earlier.id, None)
        self._facts[index] = None
        self._replaced += 1
        self._first_replaced = self._first_replaced or (line, self._lines[index])

    def facts(self) -> tuple[Fact, ...]:
        """Return the facts that stand, in the order of the file."""
        return tuple(fact for fact in self._facts if fact is not None)

    def warnings(self) -> list[str]:
        """Return one line for every kind of thing that was decided without asking."""
        lines = []
        if self._first_duplicate:
            line, earlier = self._first_duplicate
            said = plural(self.duplicates, "duplicate")
            lines.append(f"{said} dropped (the first on line {line}, of line {earlier})")
        if self._first_replaced:
            line, earlier = self._first_replaced
            said = plural(self._replaced, "fact")
            lines.append(f"{said} replaced by a later target (the first on line {earlier}, by line {line})")
        return lines


def _contradiction(fact: Fact, earlier: Fact, line: int) -> str:
    return (
        f'"{printable(fact.text, SHOWN)}" gets the target "{printable(fact.target_new, SHOWN)}" '
        f'and on line {line} "{printable(earlier.target_new, SHOWN)}"'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSubject:
    """Several facts of one round on one subject: they pull at the same key, so each may cost the others something."""

    subject: str
    facts: tuple[Fact, ...]


def subjects_shared(facts: Iterable[Fact]) -> tuple[SharedSubject, ...]:
    """Return the subjects that more than one of these facts is about, in the order in which they first come."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    return tuple(
        SharedSubject(subject=subject, facts=tuple(group)) for subject, group in by_subject.items() if len(group) > 1
    )


def shared_warning(shared: Sequence[SharedSubject]) -> str | None:
    """Return the one line that tells of `subjects_shared`'s findings in a round, or None where there are none."""
    if not shared:
        return None
    facts = sum(len(group.facts) for group in shared)
    example = printable(shared[0].subject, SHOWN)
    return f'{plural(facts, "fact")} of one round share {plural(len(shared), "subject")} (the first is "{example}")'


def already_set(facts: Iterable[Fact], in_force: Iterable[Fact]) -> tuple[Fact, ...]:
    """Return those of `facts` whose target is in force already, among the facts `in_force`."""
    targets = {fact.key: fact.target_new for fact in in_force}
    return tuple(fact for fact in facts if targets.get(fact.key) == fact.target_new)


def already_set_warning(repeated: Sequence[Fact]) -> str | None:
    """Return the one line that tells of `already_set`'s findings, or None where there are none."""
    if not repeated:
        return None
    example = printable(repeated[0].text, SHOWN)
    verb = "is" if len(repeated) == 1 else "are"
    return f'{plural(len(repeated), "fact")} {verb} in force already with the same target (the first is "{example}")'


def with_own_ids(facts: Iterable[Fact]) -> list[Fact]:
    """Return facts of several versions with ids that are unique among them: a person's own may have been given twice."""
    found: list[Fact] = []
    used: set[str] = set()
    for fact in facts:
        digits = ID_DIGITS
        while fact.id in used:
            fact = replace(fact, id=fact_id(fact.prompt, fact.subject, f"{fact.target_new}{digits}", digits=digits))
            digits += 1
        used.add(fact.id)
        found.append(fact)
    return found
