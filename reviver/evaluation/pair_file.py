"""A file of minimal pairs: JSON Lines with `good` and `bad` (or BLiMP's `sentence_good` and `sentence_bad`) and `paradigm`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reviver.errors import EvaluationError
from reviver.facts.characters import text_fault
from reviver.facts.checks import Problem
from reviver.facts.kinds import jsonl_records
from reviver.facts.records import RawRecord
from reviver.text import plural, printable

ALL = "all"
"""The paradigm of a pair that names none."""

_NAMES = {"good": ("good", "sentence_good"), "bad": ("bad", "sentence_bad")}
_PARADIGM = ("paradigm", "UID")
_HINT = 'write one pair a line: {"good": "She sleeps.", "bad": "She sleep.", "paradigm": "agreement"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimalPair:
    """Two sentences of which one is wrong, and what for; `line` is its place in the file."""

    good: str
    bad: str
    paradigm: str
    line: int


def read_pairs(path: Path) -> tuple[MinimalPair, ...]:
    """Read and check a file of minimal pairs.

    Raises:
        EvaluationError: the file cannot be read, holds no pair, or holds records that are none; `facts["problems"]` has every
            problem with its line.
    """
    shown = printable(str(path), 200)
    pairs: list[MinimalPair] = []
    problems: list[Problem] = []
    try:
        with path.open("rb") as file:
            for record in jsonl_records(file):
                faults = list(record.faults)
                pair = _pair(record, faults)
                if faults:
                    problems.append(Problem(line=record.line, message="; ".join(faults)))
                elif pair is not None:
                    pairs.append(pair)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not a path"
        raise EvaluationError(f"`{shown}` cannot be read: {reason.lower()}", hint="check the path", path=path) from None
    if problems:
        raise EvaluationError(
            f"{plural(len(problems), 'problem')} in `{shown}`", hint=_HINT, path=path, problems=tuple(problems)
        )
    if not pairs:
        raise EvaluationError(f"`{shown}` holds no pairs", hint=_HINT, path=path)
    return tuple(pairs)


def _pair(record: RawRecord, faults: list[str]) -> MinimalPair | None:
    if faults:
        return None
    good, bad = (_text(record, names, faults) for names in _NAMES.values())
    paradigm = next((record.value[name] for name in _PARADIGM if record.value.get(name) is not None), ALL)
    if not isinstance(paradigm, str) or text_fault(paradigm, several_lines=False):
        faults.append("`paradigm` is not the name of a paradigm")
        return None
    if good and good == bad:
        faults.append("the two sentences are the same")
    return MinimalPair(good=good, bad=bad, paradigm=paradigm, line=record.line)


def _text(record: RawRecord, names: tuple[str, ...], faults: list[str]) -> str:
    name = next((name for name in names if record.value.get(name) is not None), None)
    if name is None:
        faults.append(f"there is no `{names[0]}`")
        return ""
    value = record.value[name]
    if not isinstance(value, str):
        faults.append(f"`{name}` is not a text")
        return ""
    if fault := text_fault(value, several_lines=True):
        faults.append(f"`{name}` {fault}")
    return value
