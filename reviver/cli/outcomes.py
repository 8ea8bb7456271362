"""The table of what became of facts, which several commands draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from reviver.cli.output import make_table
from reviver.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from reviver.history.results import FactResult


def outcome_table(results: Iterable[FactResult], *, known: bool = False) -> Table:
    """Return a table of facts with the answers and probabilities before and after the edit.

    Args:
        results: in the order in which they are shown.
        known: tell which facts were said before already.
    """
    table = make_table("fact", "before", "after", "p before", "p after", "", right=("p before", "p after"))
    for result in results:
        table.add_row(
            printable(f"{result.prompt.replace('{}', result.subject)} {result.target_new}", 70),
            printable(result.before.answer, 24),
            printable(result.after.answer, 24),
            f"{result.before.probability_new:.3f}",
            f"{result.after.probability_new:.3f}",
            ("✓" if result.success else "✗") + (" known before" if known and result.known else ""),
        )
    return table
