"""Turning the text of an option into a value, without what typer would import for it.

typer 0.29 builds a pydantic adapter for every parameter of a command, given or not, which takes longer than all else that
`reviver log --help` does. The values of this program are plain: whole numbers, numbers, texts, paths and flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from reviver.text import printable

_WORDS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off", ""), False),
}

_NOUNS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    bool: "`1` or `0`",
}


class PlainValue:
    """What typer calls a runtime parameter: the conversion of one parameter's value to `kind`."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value as `kind`; None was not given.

        Raises:
            typer.BadParameter: the text is none of the kind.
        """
        if value is None or isinstance(value, self._kind):
            return value
        try:
            return _WORDS[value.lower()] if self._kind is bool else self._kind(value)
        except (ValueError, KeyError):
            message = f"it must be {_NOUNS[self._kind]}, not `{printable(str(value), 40)}`"
            raise typer.BadParameter(message, ctx=ctx, param=param) from None


def use_plain_values(parameters: list[Any]) -> list[Any]:
    """Give every parameter of a plain kind our conversion, and return them all; typer keeps those it must check further.

    Where another release of typer has no such place, its own conversion does the same, only slower.
    """
    for parameter in parameters:
        kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        bounded = getattr(parameter, "min", None) is not None or getattr(parameter, "max", None) is not None
        single = parameter.nargs == 1 and not getattr(parameter, "multiple", False)
        if kind in _NOUNS and single and not bounded and getattr(parameter, "_runtime_param", kind) is None:
            parameter._runtime_param = PlainValue(kind)
    return parameters
