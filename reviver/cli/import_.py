"""reviver import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.import_ import ImportReport


@verb
def import_(
    context: Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Another workspace, a clone of one, or its `edits`.", show_default=False),
    ],
) -> None:
    """Take in the versions of another workspace."""
    from reviver.verbs.import_ import import_ as run_import

    report = run_import(context.directory, source)
    context.output.result(report, render=_render, quiet=lambda report: " ".join(one.version for one in report.imported))
    if report.imported:
        last = report.imported[-1].version
        context.output.hint(
            f"prove them with `reviver verify`; `reviver apply FACTS --from {last}` goes on from the last"
        )


def _render(console: Console, report: ImportReport) -> None:
    from reviver.cli.output import make_table

    if report.imported:
        table = make_table("version", "was", "id", "parent", "created", "facts", "message", right=("facts",))
        for one in report.imported:
            table.add_row(
                one.version,
                one.was,
                one.id[:8],
                one.parent,
                one.created.replace("T", " ")[:16],
                f"{one.facts:,}",
                printable(one.message.splitlines()[0] if one.message else "", 80),
            )
        console.print(table)
    if report.tags:
        console.print(f"tags: {', '.join(report.tags)}")
    if not report.imported:
        console.print(f"nothing to import: {plural(report.already, 'version')} of it, all of them here")
    elif report.already:
        console.print(
            f"{plural(report.already, 'version')} of it {'was' if report.already == 1 else 'were'} here already"
        )
