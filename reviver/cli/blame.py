"""reviver blame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.blame import BlamedFact, BlameReport

_SHOWN_FACTS = 20


@verb
def blame(
    context: Context,
    query: Annotated[
        str,
        typer.Argument(metavar="SUBJECT|PROMPT", help="A subject or a prompt, or a part of one.", show_default=False),
    ],
    at: Annotated[str, typer.Option("--at", metavar="VERSION", help="Search below this version.")] = "head",
) -> None:
    """Show which version set a fact, and what the model answered."""
    from reviver.verbs.blame import blame as run_blame

    report = run_blame(context.directory, query, at)

    def render(console: Console, report: BlameReport) -> None:
        _render(console, report, every_fact=context.verbose)

    context.output.result(report, render=render, quiet=lambda report: report.facts[0].version or "")


def _render(console: Console, report: BlameReport, *, every_fact: bool) -> None:
    shown = report.facts if every_fact else report.facts[:_SHOWN_FACTS]
    for number, fact in enumerate(shown):
        if number:
            console.print()
        _render_fact(console, fact)
    hidden = len(report.facts) - len(shown)
    if hidden:
        console.print(f"\nand {plural(hidden, 'fact')} more (`-v` shows all)")


def _render_fact(console: Console, fact: BlamedFact) -> None:
    from reviver.cli.output import make_table

    if fact.target is None:
        outcome = f"taken back by {fact.changes[-1].version}"
    else:
        outcome = f"{printable(fact.target, 60)} ({fact.version})"
    console.print(f"{printable(fact.text, 120)} → {outcome}")
    table = make_table("  version", "created", "what", "wanted", "before", "after", "p before", "p after", "message")
    for change in reversed(fact.changes):
        table.add_row(
            f"  {change.version}",
            change.created.replace("T", " ")[:16],
            change.what,
            printable(change.target, 40),
            printable(change.answer_before or "", 40),
            printable(change.answer_after or "", 40),
            "" if change.probability_before is None else f"{change.probability_before:.3f}",
            "" if change.probability_after is None else f"{change.probability_after:.3f}",
            printable(change.message.splitlines()[0] if change.message else "", 60),
        )
    console.print(table)
