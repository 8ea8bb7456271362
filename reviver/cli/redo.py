"""reviver redo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reviver.cli.command import Context, verb

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.redo import RedoReport


@verb
def redo(context: Context) -> None:
    """Move the head forward again after undo."""
    from reviver.verbs.redo import redo as run_redo

    report = run_redo(context.directory)
    context.output.result(report, render=_render, quiet=lambda report: report.head_after)
    if report.checkpoint is None and report.head_after != "v0":
        context.output.hint(f"write its checkpoint with `reviver checkout {report.head_after}`")


def _render(console: Console, report: RedoReport) -> None:
    when = "" if report.redone_time is None else f" of {report.redone_time}"
    console.print(
        f"did `{report.redone_verb}`{when} again: the head is {report.head_after}, it was {report.head_before}"
    )
