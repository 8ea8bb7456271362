"""Untrusted text inside a model card: nothing in it can become a heading, a link, a tag or a line of YAML."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reviver.text import printable

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
# CommonMark lets a backslash stand before any ASCII punctuation and nothing else (section 2.4).
_PUNCTUATION = frozenset("!\"#$%'()*+,-./:;=?[\\]^_`{|}~")
_SAFE_URL = re.compile(r"https://[A-Za-z0-9.\-]+(?:/[A-Za-z0-9._~/%=&?#+\-]*)?")


def escaped(text: str, limit: int = 300) -> str:
    """Return `text` as one line of Markdown that shows exactly these characters and means nothing else.

    Control and format characters become visible escapes first, so that no line ends inside; then every ASCII
    punctuation mark is escaped, which also keeps a bare address from becoming a link.
    """
    return "".join(
        _ENTITIES.get(character) or (f"\\{character}" if character in _PUNCTUATION else character)
        for character in printable(text, limit)
    )


def link(text: str, url: str) -> str:
    """Return a link where `url` is a plain https address, else the text alone."""
    return f"[{escaped(text)}]({url})" if _SAFE_URL.fullmatch(url) else escaped(text)


def code(text: str) -> str:
    """Return a code span; text that could end one is escaped as plain text instead."""
    return f"`{text}`" if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ./:@_=+\-]*", text) else escaped(text)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table whose cells are Markdown already."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
