"""reviver adopt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import (
    DeviceOption,
    DtypeOption,
    LinkModeOption,
    MessageOption,
    NoCheckpointOption,
    NoMeasureOption,
)
from reviver.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.adopt import AdoptReport


@verb
def adopt(
    context: Context,
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A folder with an edited model of the base.", show_default=False),
    ],
    from_: Annotated[
        str, typer.Option("--from", metavar="VERSION", help="The version to stand on.", envvar="REVIVER_FROM")
    ] = "base",
    message: MessageOption = "",
    no_measure: NoMeasureOption = False,
    no_checkpoint: NoCheckpointOption = False,
    link_mode: LinkModeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Make a version of somebody else's edited model."""
    settings = context.settings(apply_link_mode=link_mode, apply_device=device, apply_dtype=dtype)
    from reviver.verbs.adopt import adopt as run_adopt
    from reviver.verbs.made import MakeChoice

    report = run_adopt(
        context.directory,
        checkpoint,
        settings=settings,
        parent=from_,
        choice=MakeChoice(message=message, measure=not no_measure, checkpoint=not no_checkpoint),
        progress=context.output.progress(),
    )
    context.output.result(report, render=_render, quiet=lambda report: report.version)
    context.output.hint(f"`reviver diff {report.parent} {report.version}` shows what it changes")


def _render(console: Console, report: AdoptReport) -> None:
    from reviver.cli.made import render_made
    from reviver.cli.output import make_table

    console.print(
        f"adopted {printable(str(report.source))}: {len(report.tensors):,} of {report.compared:,} tensors differ"
    )
    render_made(console, report)
    if report.protected:
        headers = ("tensor", "protected k", "the filter would have removed")
        table = make_table(*headers, right=headers[1:])
        for one in report.protected:
            table.add_row(
                printable(one.name, 80) + ("" if one.edited else " (not one that `apply` edits)"),
                "-" if one.rank is None else str(one.rank),
                "-" if one.removed is None else f"{one.removed:.1%} of the norm",
            )
        console.print(table)
