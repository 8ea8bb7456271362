"""Values taken out of a record, with every fault of theirs collected rather than the first one raised."""

from __future__ import annotations

from collections.abc import Mapping

from reviver.facts.characters import text_fault
from reviver.facts.fact import ID_LIMIT, Probe

TEXT_LIMIT = 10_000


class FieldReading:
    """Takes values out of one record, and collects its faults."""

    __slots__ = ("faults", "notes")

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []

    def id(self, record: Mapping[str, object]) -> str | None:
        """Return the id that the record gives itself, in `id` or `case_id`, or None."""
        name = "id" if record.get("id") is not None else "case_id"
        value = record.get(name)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        return self.line(value, name, wanted="a text or a whole number", limit=ID_LIMIT) or None

    def line(self, value: object, label: str, *, wanted: str = "a text", limit: int = TEXT_LIMIT) -> str:
        """Return a text of one line, stripped; or an empty one, with a fault."""
        if type(value) is not str:
            self.wrong_type(value, label, wanted)
            return ""
        if fault := text_fault(value, several_lines=False):
            self.faults.append(f"`{label}` {fault}")
            return ""
        if len(value) > limit:
            self.faults.append(f"`{label}` is longer than {limit:,} characters")
            return ""
        return value.strip()

    def optional_line(self, value: object, label: str) -> str | None:
        """Return as `line` does, or None where there is no value."""
        return None if value is None else self.line(value, label)

    def passage(self, value: object, label: str) -> str:
        """Return the prompt of an evaluation, which may have several lines; or an empty one, with a fault."""
        if type(value) is not str:
            self.wrong_type(value, label, "a text")
            return ""
        if fault := text_fault(value, several_lines=True):
            self.faults.append(f"`{label}` {fault}")
            return ""
        return value.rstrip(" \t")

    def items(self, value: object, label: str) -> list[object]:
        """Return the items of an optional list; none, with a fault, where the value is something else."""
        if value is None:
            return []
        if type(value) is not list:
            self.wrong_type(value, label, "a list")
            return []
        return value

    def passages(self, value: object, label: str) -> tuple[str, ...]:
        """Return the prompts of an optional list."""
        return tuple(self.passage(item, f"{label}[{n}]") for n, item in enumerate(self.items(value, label)))

    def probes(self, value: object, label: str) -> tuple[Probe, ...]:
        """Return the neighbours of an optional list."""
        return tuple(self.probe(item, f"{label}[{n}]") for n, item in enumerate(self.items(value, label)))

    def probe(self, value: object, label: str) -> Probe:
        """Return a neighbour: a prompt, or an object of `prompt` and perhaps `answer`."""
        if not isinstance(value, dict):
            return Probe(prompt=self.passage(value, label))
        answer = self.optional_line(value.get("answer"), f"{label}.answer")
        return Probe(prompt=self.passage(value.get("prompt"), f"{label}.prompt"), answer=answer)

    def wrong_type(self, value: object, label: str, wanted: str) -> None:
        """Note that a value is not of the wanted type, or not there."""
        self.faults.append(
            f"`{label}` is missing" if value is None else f"`{label}` must be {wanted}, not {type_name(value)}"
        )


def type_name(value: object) -> str:
    """Return what JSON calls the type of a decoded value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "an object"
