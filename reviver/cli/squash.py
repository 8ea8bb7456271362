"""reviver squash."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.squash import SquashReport


@verb
def squash(
    context: Context,
    span: Annotated[
        str,
        typer.Argument(
            metavar="A..B",
            help="From the version after A up to B; `..B` from the base, `A..` up to the head.",
            show_default=False,
        ),
    ],
    message: MessageOption = "",
    no_measure: NoMeasureOption = False,
    no_checkpoint: NoCheckpointOption = False,
    link_mode: LinkModeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Make one patch of several."""
    settings = context.settings(apply_link_mode=link_mode, apply_device=device, apply_dtype=dtype)
    from reviver.verbs.made import MakeChoice
    from reviver.verbs.squash import squash as run_squash

    report = run_squash(
        context.directory,
        span,
        settings=settings,
        choice=MakeChoice(message=message, measure=not no_measure, checkpoint=not no_checkpoint),
        progress=context.output.progress(),
    )
    context.output.result(report, render=_render, quiet=lambda report: report.version)
    context.output.hint(f"`reviver diff {report.squashed[-1]} {report.version}` compares it with what it stands for")


def _render(console: Console, report: SquashReport) -> None:
    from reviver.cli.made import render_made

    how = "the same bytes" if report.exact else "not the same bytes"
    console.print(f"squashed {', '.join(report.squashed)}: {how} as {report.squashed[-1]}")
    render_made(console, report)
