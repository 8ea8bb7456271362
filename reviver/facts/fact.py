"""A fact: a prompt about a subject, the answer wanted from now on, and the prompts that measure what an edit did.

The normalised form of facts is JSON Lines, one fact a line, sorted names, no line break of any kind inside a line: the
same facts are always the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from reviver.errors import FactsError
from reviver.facts.characters import text_fault, with_space
from reviver.facts.decoder import BadJsonError, StrictDecoder
from reviver.files import canonical_json, sha256_bytes
from reviver.text import printable

__all__ = ["PLACEHOLDER", "Fact", "Probe", "fact_id", "facts_from_jsonl", "facts_to_jsonl", "with_space"]

PLACEHOLDER = "{}"
ID_DIGITS = 12
ID_LIMIT = 200
_DAMAGED = "the file is damaged or forged; get it again from where it came"
_FIELDS = frozenset(
    ("id", "prompt", "subject", "target_new", "target_true", "paraphrase_prompts", "neighborhood_prompts")
)
# Written as escapes, so that a program that splits text at every kind of line end still finds one fact a line.
_LINE_ENDS = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\x85\u2028\u2029")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A neighbour: a prompt whose answer an edit must not change; without an answer, it is the fact's `target_true`."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact, normalised.

    `prompt` holds exactly one `{}`, where the subject goes; any other brace stands for itself. No text has white space
    at its ends, but for the prompts of paraphrases and neighbours, which may begin with it or end with a newline.
    """

    id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = field(default=())
    neighborhood_prompts: tuple[Probe, ...] = field(default=())

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace(PLACEHOLDER, self.subject, 1)

    @property
    def subject_start(self) -> int:
        """The index in `text` of the subject's first character."""
        return self.prompt.index(PLACEHOLDER)

    @property
    def key(self) -> tuple[str, str]:
        """What the fact is about: two facts with equal keys and different targets contradict each other."""
        return self.subject, self.prompt

    def to_record(self) -> dict[str, object]:
        """Return the fact as plain JSON values; what is absent is left out."""
        record: dict[str, object] = {
            "id": self.id,
            "prompt": self.prompt,
            "subject": self.subject,
            "target_new": self.target_new,
        }
        if self.target_true is not None:
            record["target_true"] = self.target_true
        if self.paraphrase_prompts:
            record["paraphrase_prompts"] = list(self.paraphrase_prompts)
        if self.neighborhood_prompts:
            record["neighborhood_prompts"] = [
                probe.prompt if probe.answer is None else {"answer": probe.answer, "prompt": probe.prompt}
                for probe in self.neighborhood_prompts
            ]
        return record

    @classmethod
    def from_record(cls, record: object) -> Fact:
        """Return the fact that `to_record` wrote; `record` may come from a stranger.

        Raises:
            FactsError: it is not the record of a normalised fact.
        """
        if not isinstance(record, dict):
            raise _not_normalised("is not an object")
        if unknown := sorted(str(name) for name in record.keys() - _FIELDS):
            raise _not_normalised(f"holds the unknown field `{printable(unknown[0], 60)}`")
        prompt = _text(record.get("prompt"), "prompt")
        subject = _text(record.get("subject"), "subject")
        if prompt.count(PLACEHOLDER) != 1 or PLACEHOLDER in subject:
            raise _not_normalised("does not hold exactly one `{}`, in `prompt`")
        target_true = record.get("target_true")
        return cls(
            id=_text(record.get("id"), "id"),
            prompt=prompt,
            subject=subject,
            target_new=_text(record.get("target_new"), "target_new"),
            target_true=None if target_true is None else _text(target_true, "target_true"),
            paraphrase_prompts=tuple(
                _text(text, "paraphrase_prompts", several_lines=True) for text in _list(record, "paraphrase_prompts")
            ),
            neighborhood_prompts=tuple(_probe(value) for value in _list(record, "neighborhood_prompts")),
        )


def fact_id(prompt: str, subject: str, target_new: str, *, digits: int = ID_DIGITS) -> str:
    """Return the id of a fact that was given none: the first hexadecimal digits of the hash of what it says."""
    content = {"prompt": prompt, "subject": subject, "target_new": target_new}
    return sha256_bytes(canonical_json(content))[:digits]


def facts_to_jsonl(facts: Iterable[Fact]) -> bytes:
    """Return the normalised bytes of facts: JSON Lines in the order given, sorted names, UTF-8."""
    lines = []
    for fact in facts:
        line = canonical_json(fact.to_record())
        for end, escape in _LINE_ENDS:
            line = line.replace(end, escape)
        lines.append(line + b"\n")
    return b"".join(lines)


def facts_from_jsonl(data: bytes, *, name: str = "facts.jsonl") -> tuple[Fact, ...]:
    """Return the facts of `facts_to_jsonl`'s bytes, which may come from a stranger; `name` is for the messages.

    Raises:
        FactsError: the bytes are something else, or two facts go by one id.
    """
    decoder = StrictDecoder()
    facts: list[Fact] = []
    ids: set[str] = set()
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record, faults = decoder.decode_all(line.decode())
            if faults:
                raise _not_normalised(f"is damaged: {faults[0]}")
            fact = Fact.from_record(record)
            if fact.id in ids:
                raise _not_normalised(f'has the id "{printable(fact.id, 60)}" of an earlier one')
        except FactsError as error:
            raise _bad_line(name, number, error.message) from None
        except UnicodeDecodeError:
            raise _bad_line(name, number, "not UTF-8") from None
        except BadJsonError as error:
            raise _bad_line(name, number, error.message) from None
        ids.add(fact.id)
        facts.append(fact)
    return tuple(facts)


def _text(value: object, name: str, *, several_lines: bool = False) -> str:
    if not isinstance(value, str):
        raise _not_normalised(f"has no text in `{name}`")
    if fault := text_fault(value, several_lines=several_lines):
        raise _not_normalised(f"has a `{name}` that {fault}")
    return value


def _list(record: dict[str, object], name: str) -> list[object]:
    value = record.get(name, [])
    if not isinstance(value, list):
        raise _not_normalised(f"has no list in `{name}`")
    return value


def _probe(value: object) -> Probe:
    if isinstance(value, dict) and value.keys() == {"prompt", "answer"}:
        return Probe(
            prompt=_text(value["prompt"], "neighborhood_prompts", several_lines=True),
            answer=_text(value["answer"], "neighborhood_prompts"),
        )
    return Probe(prompt=_text(value, "neighborhood_prompts", several_lines=True))


def _not_normalised(what: str) -> FactsError:
    return FactsError(f"the record of a fact {what}", hint=_DAMAGED)


def _bad_line(name: str, number: int, message: str) -> FactsError:
    return FactsError(
        f"{printable(name)}:{number}: {message}",
        hint=_DAMAGED,
        line=number,
    )
