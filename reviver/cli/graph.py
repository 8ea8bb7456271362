"""Which version stands on which, drawn in plain characters as `git log --graph` does.

Versions come newest first, each above its parent. A column is a line of descent that waits for its next version; columns that
wait for the same one are neighbours and join above it, so that no two lines ever cross.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def draw(parents: Mapping[str, str], base: str) -> Iterator[tuple[str, str | None]]:
    """Yield the lines of the drawing: the characters, and the version whose line it is, if it is one's.

    Args:
        parents: each version's parent, newest version first; a parent that is not among them (it is missing, or older than
            what is shown) ends its line.
        base: where the other lines end; it comes last, if any does.
    """
    places = _planar_places(parents)
    columns: list[str] = []
    """The version that each column waits for."""
    tips: list[int] = []
    """The place of the version that each column began with."""
    for version in (*parents, base):
        waiting = columns.count(version)
        if not waiting:
            if version == base:
                return
            column = sum(tip < places[version] for tip in tips)
            if column < len(columns):
                yield "| " * column + " \\" * (len(columns) - column), None
            columns.insert(column, version)
            tips.insert(column, places[version])
        first = columns.index(version)
        for _ in range(waiting - 1):
            del columns[first + 1], tips[first + 1]
            yield ("| " * first + "|" + "/ " * (len(columns) - first)).rstrip(), None
        yield " ".join("*" if number == first else "|" for number in range(len(columns))), version
        if version != base:
            columns[first] = parents[version]
            if parents[version] not in parents and parents[version] != base:
                del columns[first], tips[first]


def _planar_places(parents: Mapping[str, str]) -> dict[str, int]:
    """Return a number for each version, in the order of columns: siblings' branches side by side, the newest leftmost."""
    # Newest first, every child comes before its parent: at its own turn a version knows its branch's newest one.
    newest: dict[str, int] = {}
    children: dict[str, list[str]] = {}
    for number, (version, parent) in enumerate(parents.items()):
        newest.setdefault(version, number)
        newest[parent] = min(newest.get(parent, number), newest[version])
        children.setdefault(parent, []).append(version)
    places: dict[str, int] = {}
    waiting = sorted((one for one, parent in parents.items() if parent not in parents), key=lambda one: -newest[one])
    while waiting:
        version = waiting.pop()
        places[version] = len(places)
        waiting += sorted(children.get(version, ()), key=lambda one: -newest[one])
    return places
