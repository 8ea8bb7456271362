"""Shares over facts, as every command tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reviver.text import plural

SHARES = {"efficacy": "efficacy", "paraphrase": "paraphrase", "neighbors_kept": "neighbours kept", "success": "ES"}
"""What the fields of a summary are called, in the order in which they are read."""

_COUNTS = {"facts": "fact", "paraphrases": "paraphrase", "neighbors": "neighbour"}


def told_shares(summary: Mapping[str, Any]) -> str:
    """Return the shares of a summary in one line; one of nothing is left out."""
    return ", ".join(f"{told} {summary[name]:.1%}" for name, told in SHARES.items() if summary.get(name) is not None)


def told_counts(summary: Mapping[str, Any]) -> str:
    """Return what the shares count: `20 facts, 60 paraphrases, 99 neighbours`."""
    counts = [plural(summary[name], noun) for name, noun in _COUNTS.items() if summary.get(name)]
    if summary.get("known"):
        counts.append(f"{summary['known']:,} known before")
    return ", ".join(counts)
