"""The drawing of a history: following its characters leads from every version to its parent, and lines never cross."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviver.cli.graph import draw

DRAWINGS = {
    (): "",
    ((1, 0),): """
* v1
* v0
""",
    ((1, 0), (2, 1), (3, 1), (4, 2)): """
* v4
| * v3
* | v2
|/
* v1
* v0
""",
    ((1, 0), (2, 1), (3, 1), (4, 1)): """
* v4
| * v3
| | * v2
|/ /
|/
* v1
* v0
""",
    ((1, 0), (2, 0), (3, 1), (4, 2), (5, 2)): """
* v5
| * v4
| | * v3
|/ /
* | v2
| * v1
|/
* v0
""",
    ((1, 0), (2, 0), (8, 2), (9, 1), (10, 2)): """
* v10
| * v9
|  \\
| * | v8
|/ /
* | v2
| * v1
|/
* v0
""",
}


def drawn(parents: dict[int, int]) -> list[tuple[str, str | None]]:
    return list(draw({f"v{one}": f"v{parents[one]}" for one in sorted(parents, reverse=True)}, "v0"))


@pytest.mark.parametrize("edges", DRAWINGS)
def test_drawings(edges: tuple[tuple[int, int], ...]) -> None:
    lines = [f"{line} {version or ''}".rstrip() for line, version in drawn(dict(edges))]
    assert lines == DRAWINGS[edges].strip().splitlines()


@settings(max_examples=200, deadline=None)
@given(choices=st.lists(st.integers(0, 10**6), max_size=30))
def test_every_line_leads_to_the_parent(choices: list[int]) -> None:
    parents = {number: choice % number for number, choice in enumerate(choices, start=1)}
    lines = drawn(parents)
    named = [version for _, version in lines if version is not None]
    assert named == [f"v{number}" for number in range(len(parents), -1 if parents else 0, -1)]
    for row, (line, version) in enumerate(lines):
        assert line.count("*") == (version is not None) and line == line.rstrip()
        if version is not None and version != "v0":
            assert descend(lines, row, line.index("*")) == f"v{parents[int(version[1:])]}"


def descend(lines: list[tuple[str, str | None]], row: int, place: int) -> str | None:
    """Follow a line of the drawing down to the next version, one row at a time."""
    while True:
        row += 1
        line, version = lines[row]
        signs = dict(enumerate(line))
        if signs.get(place) == "*":
            return version
        if signs.get(place) != "|":
            if signs.get(place - 1) == "/":
                place -= 2
            else:
                assert signs.get(place + 1) == "\\", f"the line breaks off in {line!r}"
                place += 2


def test_a_line_whose_parent_is_not_shown_ends() -> None:
    assert drawn({7: 6, 5: 3}) == [("*", "v7"), ("*", "v5")]
    assert drawn({9: 2, 8: 1, 2: 0}) == [("*", "v9"), ("| *", "v8"), ("*", "v2"), ("*", "v0")]


def test_many_branches_of_one_version_stay_small() -> None:
    lines = drawn({1: 0} | dict.fromkeys(range(2, 1002), 1))
    assert len(lines) == 1002 + 999
    assert max(len(line) for line, _ in lines) == 2 * 1000 - 1
