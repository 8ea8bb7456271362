"""JSON read strictly: names given twice and numbers that are none are faults, and no input breaks the reader."""

from __future__ import annotations

import json

from reviver.text import printable

_INTEGER_DIGITS = 400


class BadJsonError(ValueError):
    """The text is not JSON; `position` is the index of the character where that shows."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


class StrictDecoder:
    """Decodes one JSON value at a time, keeping what plain `json` lets pass as a list of faults."""

    def __init__(self) -> None:
        self._faults: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_int=self._integer
        )

    def decode(self, text: str, start: int = 0) -> tuple[object, int, list[str]]:
        """Return the value that begins at `start` (no white space there), the index after it, and its faults.

        Raises:
            BadJsonError: there is no complete JSON value, or it is nested too deeply to be read.
        """
        self._faults = []
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise BadJsonError(f"not valid JSON: {error.msg}", error.pos) from None
        except RecursionError:
            raise BadJsonError("not usable JSON: nested too deeply", start) from None
        return value, end, self._faults

    def decode_all(self, text: str) -> tuple[object, list[str]]:
        """Return the one value that `text` consists of, white space around it aside, and its faults.

        Raises:
            BadJsonError: `text` is something else.
        """
        value, end, faults = self.decode(text, skip_space(text, 0))
        end = skip_space(text, end)
        if end != len(text):
            raise BadJsonError("not valid JSON: more text after the end of the value", end)
        return value, faults

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    self._faults.append(f'the name "{printable(name, 60)}" is given twice in one object')
                seen.add(name)
        return result

    def _constant(self, name: str) -> None:
        self._faults.append(f"{name} is not a JSON number")

    def _integer(self, digits: str) -> int:
        # Python refuses to convert thousands of digits, as that takes quadratic time; no fact needs such a number.
        if len(digits) > _INTEGER_DIGITS:
            self._faults.append(f"a number of {len(digits):,} digits")
            return 0
        return int(digits)


def skip_space(text: str, position: int) -> int:
    """Return the index of the first character at or after `position` that is not JSON's white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
