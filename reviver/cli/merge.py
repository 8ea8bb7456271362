"""reviver merge."""

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
from reviver.text import plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.merge import MergeReport

SHOWN_FACTS = 10


@verb
def merge(
    context: Context,
    ours: Annotated[str, typer.Argument(metavar="A", help="The version to stand on.", show_default=False)],
    theirs: Annotated[str, typer.Argument(metavar="B", help="The version to bring in.", show_default=False)],
    prefer: Annotated[
        str | None,
        typer.Option(
            "--prefer", metavar="A|B", help="Which of both wins where they contradict each other.", show_default=False
        ),
    ] = None,
    message: MessageOption = "",
    no_measure: NoMeasureOption = False,
    no_checkpoint: NoCheckpointOption = False,
    link_mode: LinkModeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Bring the patches of another branch in."""
    settings = context.settings(apply_link_mode=link_mode, apply_device=device, apply_dtype=dtype)
    from reviver.verbs.made import MakeChoice
    from reviver.verbs.merge import merge as run_merge

    report = run_merge(
        context.directory,
        ours,
        theirs,
        settings=settings,
        prefer=prefer,
        choice=MakeChoice(message=message, measure=not no_measure, checkpoint=not no_checkpoint),
        progress=context.output.progress(),
    )
    context.output.result(report, render=_render, quiet=lambda report: report.version)
    context.output.hint(f"`reviver diff {report.parent} {report.version}` shows what {report.merged} brought")


def _render(console: Console, report: MergeReport) -> None:
    from reviver.cli.made import render_made
    from reviver.cli.output import make_table

    console.print(
        f"merged {', '.join(report.versions)} into {report.parent}; both stand on {report.ancestor}"
        + (f"; {report.preferred} wins" if report.preferred else "")
    )
    if report.contradictions:
        console.print(f"{plural(len(report.contradictions), 'contradiction')}")
        table = make_table("fact", report.parent, report.merged)
        for one in report.contradictions[:SHOWN_FACTS]:
            table.add_row(
                printable(one.prompt.replace("{}", one.subject), 70),
                _said(one.ours, one.ours_version),
                _said(one.theirs, one.theirs_version),
            )
        console.print(table)
    if report.overlap:
        table = make_table("overlap of keys", "share", "largest cosines", right=("share",))
        for overlap in report.overlap:
            cosines = "dense" if overlap.cosines is None else " ".join(f"{one:.2f}" for one in overlap.cosines)
            share = "-" if overlap.shared is None else f"{overlap.shared:.1%}"
            table.add_row(printable(overlap.name, 80), share, cosines)
        console.print(table)
    render_made(console, report)


def _said(answer: str | None, version: str) -> str:
    return printable(f"{'taken back' if answer is None else answer} ({version})", 40)
