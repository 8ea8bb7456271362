"""How values become text for people: sizes, counts, durations, and untrusted text made safe for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str, limit: int | None = None) -> str:
    """Return `text` safe to show on a terminal: control, format and surrogate characters are written as escapes.

    Facts, manifests and remotes are untrusted; an escape sequence or a right-to-left override in them must not reach the
    terminal. With `limit`, longer text is cut to `limit` characters, the last of them an ellipsis.
    """
    shown = "".join(
        character if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else _escape(character)
        for character in text
    )
    if limit is not None and len(shown) > limit:
        return shown[: limit - 1] + "…"
    return shown


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def human_bytes(count: float) -> str:
    """Return a byte count in binary units: `human_bytes(1536)` is `'1.5 KiB'`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def human_duration(seconds: float) -> str:
    """Return a duration as a person says it: `'0.3 s'`, `'42 s'`, `'3 min 20 s'`, `'2 h 5 min'`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Return the count with its noun: `'1 fact'`, `'3 facts'`, `'2 matrices'`."""
    return f"{count:,} {noun if count == 1 else (nouns or noun + 's')}"
