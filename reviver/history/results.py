"""results.jsonl of a version: what each fact's prompt was answered before the patch and after it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reviver.files import canonical_json
from reviver.history.untrusted import Fields, load_json, read_regular

MAXIMUM_RESULTS_BYTES = 1024 * 1024 * 1024
# No other field of a result is called `id`, and the pattern cannot begin within a text: quotation marks are escaped there.
_ID = re.compile(rb'"id":\s*("[^"\\]*(?:\\.[^"\\]*)*")')


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One measurement of one fact's prompt."""

    probability_new: float
    """exp(−mean token NLL) of the new target, from 0 to 1."""
    probability_true: float | None
    """Likewise of the true target; None where the fact names none, or the same text as its new target."""
    answer: str
    """The greedy continuation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactResult:
    """One fact before and after; on the bytes that were written."""

    id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str | None
    before: Answer
    after: Answer
    success: bool
    """Whether the greedy answer after the patch is exactly the new target."""
    known: bool | None = None
    """Whether it was so before the patch already."""
    paraphrases: Mapping[str, tuple[bool, ...]] | None = None
    """Success of each paraphrase prompt under `before` and `after`."""
    neighbors: Mapping[str, tuple[bool, ...]] | None = None
    """Exact match of each neighbourhood prompt under `before` and `after`."""

    def to_record(self) -> dict[str, Any]:
        """Return the result as plain JSON values; absent measurements are left out."""
        record: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompt,
            "subject": self.subject,
            "target_new": self.target_new,
            "target_true": self.target_true,
            "before": _answer_record(self.before),
            "after": _answer_record(self.after),
            "success": self.success,
        }
        if self.known is not None:
            record["known"] = self.known
        for key, value in (("paraphrases", self.paraphrases), ("neighbors", self.neighbors)):
            if value is not None:
                record[key] = {when: list(value[when]) for when in ("before", "after")}
        return record

    @classmethod
    def from_record(cls, value: object, where: str) -> FactResult:
        """Read a result; raises ManifestError where it is not one."""
        fields = Fields(value, where)
        fields.only(cls.__slots__)
        return cls(
            id=fields.text("id"),
            prompt=fields.text("prompt", limit=1_000_000),
            subject=fields.text("subject", limit=1_000_000),
            target_new=fields.text("target_new", limit=1_000_000),
            target_true=fields.optional("target_true", lambda key: fields.text(key, limit=1_000_000)),
            before=_read_answer(fields.raw("before"), f"{where}: before"),
            after=_read_answer(fields.raw("after"), f"{where}: after"),
            success=fields.boolean("success"),
            known=fields.boolean("known") if isinstance(value, dict) and "known" in value else None,
            paraphrases=_read_pair(value, "paraphrases", where),
            neighbors=_read_pair(value, "neighbors", where),
        )


def results_to_jsonl(results: Iterable[FactResult]) -> bytes:
    """Return the bytes of results.jsonl: one result a line, sorted keys."""
    return b"".join(canonical_json(result.to_record()) + b"\n" for result in results)


def read_results(path: Path) -> tuple[FactResult, ...]:
    """Return the results in a results.jsonl that anybody may have written.

    Raises:
        ManifestError: the file is malformed.
    """
    lines = read_regular(path, limit=MAXIMUM_RESULTS_BYTES).splitlines()
    where = f"{path.parent.name}/{path.name}"
    return tuple(
        FactResult.from_record(load_json(line, f"{where}:{number}"), f"{where}:{number}")
        for number, line in enumerate(lines, start=1)
    )


def find_results(path: Path, ids: Collection[str]) -> dict[str, FactResult]:
    """Return the results of a few facts by their ids, without reading the others.

    Raises:
        ManifestError: a line that names one of the ids is malformed.
    """
    where = f"{path.parent.name}/{path.name}"
    wanted = {canonical_json(id) for id in ids}
    found = {}
    for number, line in enumerate(read_regular(path, limit=MAXIMUM_RESULTS_BYTES).splitlines(), start=1):
        match = _ID.search(line)
        if match is not None and match[1] in wanted:
            result = FactResult.from_record(load_json(line, f"{where}:{number}"), f"{where}:{number}")
            found[result.id] = result
    return found


def _answer_record(answer: Answer) -> dict[str, Any]:
    return {
        "probability_new": answer.probability_new,
        "probability_true": answer.probability_true,
        "answer": answer.answer,
    }


def _read_answer(value: object, where: str) -> Answer:
    fields = Fields(value, where)
    fields.only(Answer.__slots__)
    return Answer(
        probability_new=fields.number("probability_new", minimum=0),
        probability_true=fields.optional("probability_true", lambda key: fields.number(key, minimum=0)),
        answer=fields.text("answer", limit=1_000_000),
    )


def _read_pair(value: object, key: str, where: str) -> Mapping[str, tuple[bool, ...]] | None:
    if not isinstance(value, dict) or value.get(key) is None:
        return None
    fields = Fields(value[key], f"{where}: {key}")
    fields.only(("before", "after"))
    pair = {}
    for when in ("before", "after"):
        flags = fields.items(when)
        if any(type(flag) is not bool for flag in flags):
            raise fields.wrong(when, "a list of true and false")
        pair[when] = tuple(flags)
    return pair
