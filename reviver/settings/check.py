"""Types and ranges of settings, whichever place a value comes from."""

from __future__ import annotations

import math
import re
from dataclasses import Field
from typing import Any

from reviver.settings.sections import find_field
from reviver.text import printable


def parse_layers(text: str) -> tuple[int, ...]:
    """Return the blocks that a text names: `"4-8"`, `"3,5,7"` and `"1,4-6"` are ascending and name no block twice.

    Raises:
        ValueError: it is none of these.
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part, re.ASCII)
        if match is None:
            raise ValueError(text)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(text)
        layers += range(first, last + 1)
    if layers != sorted(set(layers)):
        raise ValueError(text)
    return tuple(layers)


def _kind(key: Field[Any]) -> str:
    return str(key.type).removesuffix(" | None")


def parsed(name: str, text: str) -> object:
    """Return a variable's text as the type of its setting; what cannot be read stays text and is refused as such."""
    kind = _kind(find_field(name)[1])
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        return text
    return text


def checked(name: str, value: object, what: str) -> object:
    """Return a value of the right type and range.

    Raises:
        KeyError: there is no such setting.
        ValueError: the value will not do; the text says why.
    """
    _, key = find_field(name)
    shown = printable(repr(value), 40)
    kind = _kind(key)
    if kind == "tuple[int, ...]":
        return _checked_layers(value, what, shown)
    if kind == "float" and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    if type(value) is not {"int": int, "float": float, "str": str}[kind]:
        noun = {"int": "a whole number", "float": "a number", "str": "a text"}[kind]
        raise ValueError(f"{what} must be {noun}, not {shown}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, not {shown}")
    if isinstance(value, int | float):
        least, above, most, below = key.metadata["bounds"]
        for holds, words in (
            (least is None or value >= least, f"at least {least}"),
            (above is None or value > above, f"above {above}"),
            (most is None or value <= most, f"at most {most}"),
            (below is None or value < below, f"below {below}"),
        ):
            if not holds:
                raise ValueError(f"{what} must be {words}, not {shown}")
    if isinstance(value, str):
        choices, form = key.metadata["choices"], key.metadata["form"]
        if choices and value not in choices:
            raise ValueError(f"{what} must be one of {', '.join(f'`{choice}`' for choice in choices)}, not {shown}")
        if form is not None and not form.pattern.fullmatch(value):
            raise ValueError(f"{what} must be {form.words}, not {shown}")
        if not value.strip() or not value.isprintable():
            raise ValueError(f"{what} must be a text that can be read, not {shown}")
    return value


def _checked_layers(value: object, what: str, shown: str) -> tuple[int, ...]:
    try:
        if isinstance(value, str):
            return parse_layers(value)
        if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
            return parse_layers(",".join(map(str, value)))
    except ValueError:
        pass
    raise ValueError(f"{what} must name blocks in ascending order, such as `4-8` or `3,5,7`, not {shown}")
