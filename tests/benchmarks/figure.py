"""The collapse figure as SVG: general ability, efficacy over all edits, neighbours and norm against the number of edits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN, GAP = 420, 230, 46, 34
COLORS = {
    "memit": "#0b6e99",
    "rect": "#b3541e",
    "alphaedit": "#3f7d20",
    "nse": "#7b3fa0",
    "prune": "#8a6d00",
    "ultraedit": "#b0305c",
}
INK, PALE = "#222222", "#d9d9d9"

# By editor, filter, and what else tells cases apart; then by the number of edits.
Series = dict[tuple[str, str, str], dict[int, list[float]]]


@dataclass(frozen=True)
class Panel:
    """One chart: its title, the figure it shows of a measured point, and whether its axis is logarithmic."""

    title: str
    value: Callable[[Mapping[str, Any], Mapping[str, Any]], float | None]
    logarithmic: bool = False


def draw_figure(record: Mapping[str, Any], ability: Callable[[Mapping[str, Any], Mapping[str, float]], float]) -> str:
    """Return the figure of all cases in a record of `proof.py`.

    Args:
        record: cases with their points.
        ability: returns the share of general ability kept, from a point and the base's figures.
    """
    panels = (
        Panel("general ability kept", lambda point, base: ability(point, base) if "pairs" in point else None),
        Panel("efficacy over all edits so far", lambda point, _: point.get("efficacy")),
        Panel("neighbours kept", lambda point, _: point.get("neighbors_kept")),
        Panel("norm, times the base's", lambda point, _: point["growth"], logarithmic=True),
    )
    parts = []
    for index, panel in enumerate(panels):
        left, top = (index % 2) * (WIDTH + GAP), (index // 2) * (HEIGHT + GAP)
        parts.append(f'<g transform="translate({left},{top})">{_chart(panel, _series(record, panel))}</g>')
    editors = list(dict.fromkeys(case["editor"] for case in record["cases"].values()))
    width, height = 2 * WIDTH + GAP, 2 * HEIGHT + GAP + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" '
        f'fill="{INK}"><rect width="{width}" height="{height}" fill="white"/>'
        f"{''.join(parts)}{_legend(editors, height - 10)}</svg>\n"
    )


def _series(record: Mapping[str, Any], panel: Panel) -> Series:
    found: Series = {}
    for case in record["cases"].values():
        told = "".join(f" {name}={value}" for name, value in case.get("settings", {}).items())
        line = found.setdefault((case["editor"], case["filter"], f"{case.get('rank')}{told}"), {})
        for point in case["points"]:
            value = panel.value(point, case["base"])
            if value is not None and math.isfinite(value):
                line.setdefault(point["edits"], []).append(value)
    return {key: line for key, line in found.items() if line}


def _chart(panel: Panel, series: Series) -> str:
    every = [value for line in series.values() for values in line.values() for value in values]
    last = max((edits for line in series.values() for edits in line), default=1)
    low, high = (min(1.0, *every, 1.0), max(1.0, *every)) if panel.logarithmic and every else (0.0, 1.0)
    scale = (lambda value: math.log10(max(value, 1e-9))) if panel.logarithmic else float
    bottom, top = scale(low), scale(high) if scale(high) > scale(low) else scale(low) + 1

    def place(edits: int, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - MARGIN - 8) * edits / last
        y = HEIGHT - 24 - (HEIGHT - 48) * (scale(value) - bottom) / (top - bottom)
        return round(x, 1), round(y, 1)

    parts = [f'<text x="{MARGIN}" y="14" font-weight="bold">{escape(panel.title)}</text>']
    for value in _ticks(low, high, panel.logarithmic):
        x, y = place(0, value)
        parts.append(f'<path d="M{x} {y}H{WIDTH - 8}" stroke="{PALE}"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for edits in (0, last // 2, last):
        x, _ = place(edits, high)
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{edits}</text>')
    for (editor, name, _), line in series.items():
        parts.append(_line(editor, name, line, place))
    return "".join(parts)


def _ticks(low: float, high: float, logarithmic: bool) -> Sequence[float]:
    if not logarithmic:
        return (0.0, 0.25, 0.5, 0.75, 1.0)
    return [
        10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        if 10.0**power <= high
    ]


def _line(
    editor: str, name: str, line: Mapping[int, list[float]], place: Callable[[int, float], tuple[float, float]]
) -> str:
    """Draw the mean over the seeds, and their spread as a band."""
    color = COLORS.get(editor, INK)
    dash = ' stroke-dasharray="5 4"' if name == "none" else ""
    edits = sorted(line)
    means = " ".join("{},{}".format(*place(one, statistics.mean(line[one]))) for one in edits)
    upper = [place(one, max(line[one])) for one in edits]
    lower = [place(one, min(line[one])) for one in reversed(edits)]
    band = " ".join(f"{x},{y}" for x, y in [*upper, *lower])
    return (
        f'<polygon points="{band}" fill="{color}" fill-opacity="0.12"/>'
        f'<polyline points="{means}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>'
    )


def _legend(editors: Sequence[str], y: float) -> str:
    parts, x = [], MARGIN
    for editor in editors:
        parts.append(f'<path d="M{x} {y - 4}h18" stroke="{COLORS.get(editor, INK)}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 23}" y="{y}">{escape(editor)}</text>')
        x += 90
    parts.append(f'<path d="M{x} {y - 4}h24" stroke="{INK}" stroke-width="1.8" stroke-dasharray="5 4"/>')
    parts.append(f'<text x="{x + 29}" y="{y}">no filter</text>')
    parts.append(f'<path d="M{x + 90} {y - 4}h24" stroke="{INK}" stroke-width="1.8"/>')
    parts.append(f'<text x="{x + 119}" y="{y}">under the filter</text>')
    return "".join(parts)
