"""reviver undo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reviver.cli.command import Context, verb

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.undo import UndoReport


@verb
def undo(context: Context) -> None:
    """Move the head back to where it was."""
    from reviver.verbs.undo import undo as run_undo

    report = run_undo(context.directory)
    context.output.result(report, render=_render, quiet=lambda report: report.head_after)
    if report.checkpoint is None and report.head_after != "v0":
        context.output.hint(f"write its checkpoint with `reviver checkout {report.head_after}`")
    else:
        context.output.hint("`reviver redo` takes the undo back")


def _render(console: Console, report: UndoReport) -> None:
    when = "" if report.undone_time is None else f" of {report.undone_time}"
    console.print(f"undid `{report.undone_verb}`{when}: the head is {report.head_after}, it was {report.head_before}")
    console.print(f"{report.head_before} is still there: `reviver log`")
