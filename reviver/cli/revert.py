"""reviver revert."""

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

    from reviver.verbs.revert import RevertReport

SHOWN_FACTS = 10


@verb
def revert(
    context: Context,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="The version whose patch shall go.", show_default=False)
    ],
    fact: Annotated[
        list[str] | None,
        typer.Option(
            "--fact", metavar="ID", help="Take back this fact only; may be given several times.", show_default=False
        ),
    ] = None,
    message: MessageOption = "",
    no_measure: NoMeasureOption = False,
    no_checkpoint: NoCheckpointOption = False,
    link_mode: LinkModeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Take one patch, or one fact of it, out of the middle."""
    settings = context.settings(apply_link_mode=link_mode, apply_device=device, apply_dtype=dtype)
    from reviver.verbs.made import MakeChoice
    from reviver.verbs.revert import revert as run_revert

    report = run_revert(
        context.directory,
        version,
        settings=settings,
        facts=tuple(fact or ()),
        choice=MakeChoice(message=message, measure=not no_measure, checkpoint=not no_checkpoint),
        progress=context.output.progress(),
    )
    context.output.result(report, render=_render, quiet=lambda report: report.version)
    context.output.hint(f"`reviver diff {report.parent} {report.version}` shows what changed")


def _render(console: Console, report: RevertReport) -> None:
    from reviver.cli.made import render_made
    from reviver.cli.output import make_table

    what = report.reverted if not report.facts else f"{plural(len(report.facts), 'fact')} of {report.reverted}"
    console.print(f"took back {what}")
    render_made(console, report, dropped=False)
    if not report.dropped:
        return
    table = make_table("no longer in force", "answer at first", "before", "now", "")
    for one in report.dropped[:SHOWN_FACTS]:
        table.add_row(
            printable(f"{one.prompt.replace('{}', one.subject)} {one.target_new}", 70),
            printable(one.answer_first or "", 24),
            printable(one.answer_before, 24),
            printable(one.answer_after, 24),
            {True: "as at first", False: "", None: ""}[one.back],
        )
    console.print(table)
    if len(report.dropped) > SHOWN_FACTS:
        console.print(f"… and {len(report.dropped) - SHOWN_FACTS:,} more in `edits/{report.version}/results.jsonl`")
