"""How bytes and records are broken: some exchanged, cut out or doubled, or one value replaced by something odd."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

_ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**31, 2**63 - 1, 2**63, 10**400, 1e308, -1e-320, "", " ", "x", "v1", "v0", "head",
    "../x", "/etc/passwd", "C:\\x", "a\x00b", "\x1b[2J\u202e", "\ud800", "\u2028", "é" * 2000, "x" * 70_000, "ab" * 32,
    [], {}, [[]], [None], {"": None}, {"schema": 1}, {"schema": 2}, {"x": {"y": [1, {"z": "w"}]}},
]  # fmt: skip


_PIECES = (b"", b"\x00", b"\xff", b"{", b"}", b"[", b'"', b"\\", b"\n", b"0", b"-", b"e9999", b",", b":")


def _odd(chance: random.Random) -> Any:
    if chance.random() < 0.05:
        value: Any = chance.choice(_ODD)
        for _ in range(chance.choice((5, 40, 2000))):
            value = [value] if chance.random() < 0.5 else {"x": value}
        return value
    return chance.choice(_ODD)


def _is_small(value: Any) -> bool:
    """Return whether a JSON value is written in a few characters."""
    stack, left = [value], 20
    while stack and left > 0:
        one = stack.pop()
        if isinstance(one, dict):
            stack += [*one, *one.values()]
        elif isinstance(one, list):
            stack += one
        left -= len(one) if isinstance(one, (str, list, dict)) else 1
    return not stack and left > 0


def _changed(value: Any, chance: random.Random) -> Any:
    """Return a JSON value that differs in one place: something odd, something missing, or something twice."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        action = chance.random()
        if action < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if action < 0.2:
            return {**value, str(chance.choice(_ODD))[:100]: _odd(chance)}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        action = chance.random()
        if action < 0.15:
            return value[:place] + value[place + 1 :]
        if action < 0.3:
            # A thousand copies of something long would be the mutation's own memory.
            return value + [value[place]] * chance.choice((1, 3, 1000 if _is_small(value[place]) else 3))
        return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    return _odd(chance)


def changed_record(data: bytes, chance: random.Random, *, lines: bool) -> bytes:
    """Return some JSON, or JSON Lines, with one record changed in a few places; what is neither is spliced."""
    texts = data.splitlines() if lines else [data]
    place = chance.randrange(len(texts) or 1)
    try:
        record = json.loads(texts[place])
    except (ValueError, IndexError, RecursionError):
        return spliced(data, chance)
    for _ in range(chance.choice((1, 1, 2, 4))):
        record = _changed(record, chance)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        texts[place] = json.dumps(record).encode()
    finally:
        sys.setrecursionlimit(limit)
    return b"\n".join([*texts, b""]) if lines else texts[0]


def spliced(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with some exchanged, cut out, put in or doubled."""
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place, length = chance.randrange(len(data) + 1), chance.choice((0, 1, 1, 4, 100, 10_000))
        piece = chance.choice((*_PIECES, data[place : place + 50]))
        data = data[:place] + piece + data[place + length :]
    return data
