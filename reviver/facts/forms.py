"""The forms in which facts are published, told apart by their fields, and how each becomes a `Fact`.

`own`               prompt (with `{}` or holding the subject), subject, target_new; optional id, target_true,
                    paraphrase_prompts, neighborhood_prompts (texts, or objects of prompt and answer)
`counterfact`       requested_rewrite {prompt, subject, target_new {str}, target_true {str}}, paraphrase_prompts,
                    neighborhood_prompts (Meng et al. 2022, https://rome.baulab.info/data/)
`counterfact-flat`  prompt, subject, target_new, ground_truth, rephrase_prompt, locality_prompt, locality_ground_truth
                    (EasyEdit)
`knowedit`          prompt, subject, target_new, ground_truth (text or list), rephrase_prompt, locality {name: [{prompt,
                    ground_truth}]} (Zhang et al. 2024; ZsRE among others)
`memit-request`     prompt, subject, target_new {str}, target_true {str} (the requests of MEMIT's code)

All take `case_id` for the id. Texts are stripped of white space at their ends, for the space between a prompt and a
target is written on either side, or on none; prompts of an evaluation lose only trailing spaces and tabs, as their line
breaks carry meaning.

`rephrase_prompt` is a paraphrase in `knowedit`. In `counterfact-flat` it is not used: in five of six records of that
file it is a text to go on from, not a paraphrase, and a score over the mixture would be called what it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reviver.facts.fact import Fact, Probe, fact_id
from reviver.facts.fields import FieldReading
from reviver.facts.placing import PlacingError, place_subject
from reviver.text import printable

OWN, COUNTERFACT, FLAT, KNOWEDIT, REQUEST = FORMS = (
    "own",
    "counterfact",
    "counterfact-flat",
    "knowedit",
    "memit-request",
)
EVERY_FORM = frozenset(FORMS)
_FIELD_FORMS: Mapping[str, frozenset[str]] = {
    "id": EVERY_FORM,
    "case_id": EVERY_FORM,
    "prompt": EVERY_FORM - {COUNTERFACT},
    "subject": EVERY_FORM - {COUNTERFACT},
    "target_new": EVERY_FORM - {COUNTERFACT},
    "target_true": frozenset((OWN, REQUEST)),
    "paraphrase_prompts": frozenset((OWN, COUNTERFACT, REQUEST)),
    "neighborhood_prompts": frozenset((OWN, COUNTERFACT, REQUEST)),
    "requested_rewrite": frozenset((COUNTERFACT,)),
    "ground_truth": frozenset((FLAT, KNOWEDIT)),
    "rephrase_prompt": frozenset((FLAT, KNOWEDIT)),
    "locality_prompt": frozenset((FLAT,)),
    "locality_ground_truth": frozenset((FLAT,)),
    "locality": frozenset((KNOWEDIT,)),
    "portability": frozenset((KNOWEDIT,)),
    "cond": frozenset((KNOWEDIT,)),
}
# Fields of published files that reviver has no use for; of any other unknown field the person is told, as it may be
# misspelt.
_UNUSED_FIELDS = frozenset(("pararel_idx", "relation_id", "attribute_prompts", "generation_prompts", "target_neg"))
FIELDS = frozenset(_FIELD_FORMS)
JSON_FIELDS = frozenset(("paraphrase_prompts", "neighborhood_prompts", "requested_rewrite", "locality", "portability"))

UNUSED_REPHRASE = (
    "`rephrase_prompt` is not used: in CounterFact's flat form few of them are paraphrases (give `paraphrase_prompts`)"
)
# Published code takes either for the target, so the file alone does not tell what is meant.
TWO_ANSWERS = (
    "ZsRE in MEND's form has two answers, `answers` and `alt`: name the one you mean `target_new`, `src` `prompt`, and put "
    "`rephrase` into a list `paraphrase_prompts`"
)
SAME_TARGET = "`target_new` is the same as `target_true`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """What became of one record: a fact, or the faults that keep it from being one.

    `forms` are those that the record could be in; `notes` is what a person should know though the fact is usable.
    """

    fact: Fact | None
    forms: frozenset[str]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    unknown_fields: tuple[str, ...]


def normalise(record: Mapping[str, object]) -> Normalised:
    """Return the fact of a record in any of the forms, or every fault of it."""
    forms, clash = _recognise(record)
    unknown = tuple(record.keys() - FIELDS - _UNUSED_FIELDS)
    if clash:
        return Normalised(fact=None, forms=forms, faults=(clash,), notes=(), unknown_fields=unknown)
    form = first_form(forms)
    reading = FieldReading()
    parts = _READERS[form](reading, record)
    fact = _fact(reading, record, parts)
    return Normalised(
        fact=fact, forms=forms, faults=tuple(reading.faults), notes=tuple(reading.notes), unknown_fields=unknown
    )


def first_form(forms: frozenset[str]) -> str:
    """Return the form that a record is read in: of those it could be in, which all read it alike, the first."""
    return next(form for form in FORMS if form in forms)


def _recognise(record: Mapping[str, object]) -> tuple[frozenset[str], str | None]:
    """Return the forms that all fields of a record belong to, and a fault if there is none."""
    if "src" in record and "alt" in record and "prompt" not in record:
        return EVERY_FORM, TWO_ANSWERS
    forms = EVERY_FORM
    former = ""
    for name, value in record.items():
        if value is None:
            # As if it were not there: tables written as JSON give every column to every record.
            continue
        wanted = _field_forms(name, record)
        if not forms & wanted:
            return EVERY_FORM, f"the fields of two forms are mixed: `{former}` and `{name}`"
        if len(forms & wanted) < len(forms):
            former = name
        forms &= wanted
    return forms, None


def _field_forms(name: str, record: Mapping[str, object]) -> frozenset[str]:
    """Return the forms in which a field of this name, with a value of this type, is known."""
    value = record[name]
    if name in ("target_new", "target_true") and isinstance(value, str | dict):
        known = _FIELD_FORMS[name]
        return known & {REQUEST} if isinstance(value, dict) else known - {REQUEST}
    if name == "ground_truth" and isinstance(value, list):
        return frozenset((KNOWEDIT,))
    if name == "rephrase_prompt":
        # Both forms have it, with different meanings: only a sure sign of `knowedit` makes it a paraphrase.
        sure = "locality" in record or "portability" in record or isinstance(record.get("ground_truth"), list)
        return frozenset((KNOWEDIT if sure else FLAT,))
    return _FIELD_FORMS.get(name, EVERY_FORM)


@dataclass(slots=True, kw_only=True)
class _Parts:
    """The texts of a record, brought together from wherever its form keeps them."""

    prompt: str
    subject: str
    target_new: str
    target_true: str | None
    paraphrases: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()


def _fact(reading: FieldReading, record: Mapping[str, object], parts: _Parts) -> Fact | None:
    """Return the fact, or None where there is any fault."""
    given = reading.id(record)
    prompt = parts.prompt
    if parts.prompt and parts.subject:
        try:
            prompt, note = place_subject(parts.prompt, parts.subject)
        except PlacingError as error:
            reading.faults.append(str(error))
        else:
            if note:
                reading.notes.append(note)
    if reading.faults:
        return None
    if parts.target_true == parts.target_new:
        reading.notes.append(SAME_TARGET)
    return Fact(
        id=given or fact_id(prompt, parts.subject, parts.target_new),
        prompt=prompt,
        subject=parts.subject,
        target_new=parts.target_new,
        target_true=parts.target_true,
        paraphrase_prompts=parts.paraphrases,
        neighborhood_prompts=parts.probes,
    )


def _read_own(reading: FieldReading, record: Mapping[str, object]) -> _Parts:
    return _Parts(
        prompt=reading.line(record.get("prompt"), "prompt"),
        subject=reading.line(record.get("subject"), "subject"),
        target_new=reading.line(record.get("target_new"), "target_new"),
        target_true=reading.optional_line(record.get("target_true"), "target_true"),
        paraphrases=reading.passages(record.get("paraphrase_prompts"), "paraphrase_prompts"),
        probes=reading.probes(record.get("neighborhood_prompts"), "neighborhood_prompts"),
    )


def _read_request(reading: FieldReading, record: Mapping[str, object], prefix: str = "") -> _Parts:
    true = record.get("target_true")
    return _Parts(
        prompt=reading.line(record.get("prompt"), f"{prefix}prompt"),
        subject=reading.line(record.get("subject"), f"{prefix}subject"),
        target_new=_string_of(reading, record.get("target_new"), f"{prefix}target_new"),
        target_true=None if true is None else _string_of(reading, true, f"{prefix}target_true"),
        paraphrases=reading.passages(record.get("paraphrase_prompts"), "paraphrase_prompts"),
        probes=reading.probes(record.get("neighborhood_prompts"), "neighborhood_prompts"),
    )


def _string_of(reading: FieldReading, value: object, label: str) -> str:
    if not isinstance(value, dict):
        reading.wrong_type(value, label, "an object")
        return ""
    return reading.line(value.get("str"), f"{label}.str")


def _read_counterfact(reading: FieldReading, record: Mapping[str, object]) -> _Parts:
    rewrite = record.get("requested_rewrite")
    if not isinstance(rewrite, dict):
        reading.wrong_type(rewrite, "requested_rewrite", "an object")
        return _Parts(prompt="", subject="", target_new="", target_true=None)
    inner = {name: rewrite.get(name) for name in ("prompt", "subject", "target_new", "target_true")}
    outer = {name: record.get(name) for name in ("paraphrase_prompts", "neighborhood_prompts")}
    return _read_request(reading, inner | outer, "requested_rewrite.")


def _read_flat(reading: FieldReading, record: Mapping[str, object]) -> _Parts:
    parts = _read_own(reading, {name: record.get(name) for name in ("prompt", "subject", "target_new")})
    parts.target_true = reading.optional_line(record.get("ground_truth"), "ground_truth")
    if record.get("rephrase_prompt") is not None:
        reading.notes.append(UNUSED_REPHRASE)
    answer = reading.optional_line(record.get("locality_ground_truth"), "locality_ground_truth")
    if record.get("locality_prompt") is not None:
        prompt = reading.passage(record["locality_prompt"], "locality_prompt")
        parts.probes = (Probe(prompt=prompt, answer=answer),)
    return parts


def _read_knowedit(reading: FieldReading, record: Mapping[str, object]) -> _Parts:
    parts = _read_own(reading, {name: record.get(name) for name in ("prompt", "subject", "target_new")})
    if record.get("ground_truth") is not None:
        parts.target_true = _first_answer(reading, record["ground_truth"], "ground_truth")
    rephrased = record.get("rephrase_prompt")
    if isinstance(rephrased, list):
        parts.paraphrases = reading.passages(rephrased, "rephrase_prompt")
    elif rephrased is not None:
        parts.paraphrases = (reading.passage(rephrased, "rephrase_prompt"),)
    locality = record.get("locality")
    if isinstance(locality, dict):
        parts.probes = tuple(_locality(reading, locality))
    elif locality is not None:
        reading.wrong_type(locality, "locality", "an object")
    return parts


def _locality(reading: FieldReading, kinds: Mapping[str, object]) -> list[Probe]:
    probes = []
    for kind, items in kinds.items():
        for number, item in enumerate(reading.items(items, f"locality.{printable(kind, 60)}")):
            label = f"locality.{printable(kind, 60)}[{number}]"
            if not isinstance(item, dict):
                reading.wrong_type(item, label, "an object")
                continue
            prompt = reading.passage(item.get("prompt"), f"{label}.prompt")
            answer = _first_answer(reading, item.get("ground_truth"), f"{label}.ground_truth")
            probes.append(Probe(prompt=prompt, answer=answer))
    return probes


def _first_answer(reading: FieldReading, value: object, label: str) -> str:
    """Return the first of several names of one answer; KnowEdit nests the lists up to two deep."""
    for _ in range(2):
        if isinstance(value, list):
            if not value:
                reading.faults.append(f"`{label}` is an empty list")
                return ""
            value, label = value[0], f"{label}[0]"
    return reading.line(value, label)


_READERS: Mapping[str, Callable[[FieldReading, Mapping[str, object]], _Parts]] = {
    OWN: _read_own,
    COUNTERFACT: _read_counterfact,
    FLAT: _read_flat,
    KNOWEDIT: _read_knowedit,
    REQUEST: _read_request,
}
