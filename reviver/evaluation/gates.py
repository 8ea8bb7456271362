"""Gates: conditions that a version has to meet, such as `es>=0.9,perplexity<=1.05x`.

A gate is a metric, a comparison and a bound; a bound that ends in `x` is that many times the parent's value, measured the same
way. Several are parted by commas, and all have to hold.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from reviver.errors import UsageError
from reviver.text import printable

METRICS: Mapping[str, str] = {
    "efficacy": "share of the new facts that are said",
    "es": "share of the new facts whose new target is more probable than the true one",
    "paraphrase": "share of their paraphrases after which the new target is said",
    "ps": "share of their paraphrases with the new target more probable",
    "neighbors_kept": "share of the neighbours that the base answers rightly and the version too",
    "ns": "share of the neighbours with the true answer more probable",
    "s": "harmonic mean of es, ps and ns",
    "retained": "share of the facts of earlier versions that are said",
    "perplexity": "on ordinary text",
    "fluency": "entropy of the words it writes by itself, in bits",
    "subspace_similarity": "overlap of the edited tensors' leading directions with the base's",
    "norm_growth": "largest norm of an edited tensor over the base's",
}
"""What can be gated, and what it is."""

_NO_SHARES = frozenset(("perplexity", "fluency", "norm_growth"))

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_METRIC = re.compile(r"[A-Za-z_]+")
_COMPARISON = re.compile(r">=|<=|>|<")
_BOUND = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition.

    Attributes:
        metric: one of `METRICS`.
        comparison: `>=`, `<=`, `>` or `<`.
        bound: what the metric is compared with.
        relative: whether the bound counts in the parent's value.
    """

    metric: str
    comparison: str
    bound: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.bound:g}{'x' if self.relative else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutcome:
    """What became of one condition.

    Attributes:
        gate: as `str(Gate)` writes it.
        value: of the version; None where there was nothing to measure it on.
        parent: the parent's, where the bound is relative.
        limit: the bound as a plain number; None where the parent's value is missing.
        held: whether the condition holds; one that could not be measured does not.
    """

    gate: str
    value: float | None
    parent: float | None
    limit: float | None
    held: bool


def parse_gates(text: str) -> tuple[Gate, ...]:
    """Return the conditions of `--gate`.

    Raises:
        UsageError: the text is none, with the character at which that shows, counted from 1.
    """
    gates = []
    place = 0
    while True:
        place = _after_space(text, place)
        metric = _read(_METRIC, text, place, "the name of a metric")
        if metric not in METRICS:
            near = get_close_matches(metric, METRICS, n=1)
            raise _refused(
                text,
                place,
                f"there is no metric `{printable(metric, 40)}`",
                f"did you mean `{near[0]}`?" if near else f"the metrics are {', '.join(METRICS)}",
            )
        place = _after_space(text, place + len(metric))
        comparison = _read(_COMPARISON, text, place, "`>=`, `<=`, `>` or `<`")
        place = _after_space(text, place + len(comparison))
        number = _read(_BOUND, text, place, "a number")
        bound = float(number)
        if not math.isfinite(bound):
            raise _refused(text, place, f"`{printable(number, 40)}` is too large", _EXAMPLE)
        relative = text[place + len(number) :].startswith("x")
        if bound > 1 and not relative and metric not in _NO_SHARES:
            raise _refused(text, place, f"`{metric}` is a share, from 0 to 1", f"95 % is written `{metric}>=0.95`")
        place += len(number)
        gates.append(Gate(metric=metric, comparison=comparison, bound=bound, relative=relative))
        place = _after_space(text, place + relative)
        if place == len(text):
            return tuple(gates)
        if text[place] != ",":
            raise _refused(text, place, f"a comma was expected before `{printable(text[place:], 20)}`", _EXAMPLE)
        place += 1


_EXAMPLE = "write for example `--gate 'es>=0.9,perplexity<=1.05x'`"


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] == " ":
        place += 1
    return place


def _read(pattern: re.Pattern[str], text: str, place: int, what: str) -> str:
    found = pattern.match(text, place)
    if found is None:
        rest = f", not `{printable(text[place:], 20)}`" if text[place:] else ""
        raise _refused(text, place, f"{what} was expected{rest}", _EXAMPLE)
    return found.group()


def _refused(text: str, place: int, what: str, hint: str) -> UsageError:
    return UsageError(
        f"the gate cannot be read at character {place + 1}: {what}", hint=hint, gate=text, position=place + 1
    )


def check_gates(
    gates: Sequence[Gate], measured: Mapping[str, float | None], parent: Mapping[str, float | None]
) -> tuple[GateOutcome, ...]:
    """Return what becomes of every condition.

    Args:
        gates: by `parse_gates`.
        measured: the version's metrics by name; what is missing, None or NaN fails its conditions.
        parent: the parent's, of which only those of relative gates are needed.
    """
    outcomes = []
    for gate in gates:
        value = measured.get(gate.metric)
        reference = parent.get(gate.metric) if gate.relative else None
        limit = gate.bound if not gate.relative else None if reference is None else gate.bound * reference
        held = value is not None and limit is not None and bool(_COMPARISONS[gate.comparison](value, limit))
        outcomes.append(GateOutcome(gate=str(gate), value=value, parent=reference, limit=limit, held=held))
    return tuple(outcomes)
