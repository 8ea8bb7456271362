"""reviver log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import plural, printable

BASE = "v0"

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.log import LogEntry, LogReport


@verb
def log(
    context: Context,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", metavar="N", help="At most N versions.", show_default=False)
    ] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Draw which version stands on which.")] = False,
) -> None:
    """Show the versions, newest first."""
    from reviver.verbs.log import log as run_log

    report = run_log(context.directory, limit=limit)

    def render(console: Console, report: LogReport) -> None:
        _render_graph(console, report) if graph else _render(console, report)
        hidden = report.total - len(report.entries)
        if limit is not None and hidden:
            console.print(f"and {plural(hidden, 'older version')}")

    context.output.result(report, render=render, quiet=lambda report: report.head)
    if not report.total:
        context.output.hint("make the first version with `reviver apply FACTS`")


def _render(console: Console, report: LogReport) -> None:
    from rich.text import Text

    from reviver.cli.output import make_table

    table = make_table("", "version", "id", "parent", "created", "facts", "editor", "message", right=("facts",))
    for entry in report.entries:
        style = "" if entry.in_chain else "dim"
        # The sign says what the colour says: `*` the head, `|` below it, `-` not below it (a branch, or undone).
        sign = "*" if entry.head else "|" if entry.in_chain else "-"
        cells = (
            sign,
            entry.version,
            entry.id[:8],
            entry.parent,
            entry.created.replace("T", " ")[:16],
            f"{entry.facts:,}",
            _editor(entry),
            _message(entry),
        )
        table.add_row(*(Text(cell, style=style) for cell in cells))
    table.add_row("*" if report.head == BASE else "|", BASE, "", "", "", "", "", "the base")
    console.print(table)


def _render_graph(console: Console, report: LogReport) -> None:
    from reviver.cli.graph import draw

    entries = {entry.version: entry for entry in report.entries}
    for lines, version in draw({name: entry.parent for name, entry in entries.items()}, BASE):
        if version is None:
            console.print(lines)
        elif version == BASE:
            console.print(f"{lines} {BASE}{' (head)' if report.head == BASE else ''} the base")
        else:
            entry = entries[version]
            names = [*(["head"] if entry.head else []), *entry.tags]
            shown = f" ({printable(', '.join(names), 80)})" if names else ""
            when = entry.created.replace("T", " ")[:16]
            first = printable(entry.message.splitlines()[0], 80) if entry.message else ""
            told = f"{version} {entry.id[:8]}{shown} {when}, {plural(entry.facts, 'fact')}"
            console.print(f"{lines} {told}{': ' if first else ''}{first}")


def _editor(entry: LogEntry) -> str:
    protected = f" k={entry.rank}" if entry.rank is not None else f" τ={entry.energy:g}" if entry.energy else ""
    return printable(f"{entry.editor}+{entry.filter}{protected}", 40)


def _message(entry: LogEntry) -> str:
    first = entry.message.splitlines()[0] if entry.message else ""
    tags = f"[{', '.join(entry.tags)}] " if entry.tags else ""
    return printable(tags + first, 80)
