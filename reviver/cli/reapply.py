"""reviver reapply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import DeviceOption, DtypeOption, LinkModeOption, MessageOption, NoCheckpointOption

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.plan import ApplyPlan
    from reviver.verbs.reapply import ReapplyReport


@verb
def reapply(
    context: Context,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="The version whose facts are solved for again.", show_default=False)
    ],
    onto: Annotated[str, typer.Option("--onto", metavar="VERSION", help="The version to stand on.")] = "head",
    from_workspace: Annotated[
        Path | None,
        typer.Option(
            "--from-workspace",
            metavar="DIR",
            help="The workspace that VERSION is in, of another base of the same architecture.",
            show_default=False,
        ),
    ] = None,
    message: MessageOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.", show_default=False)] = False,
    no_checkpoint: NoCheckpointOption = False,
    link_mode: LinkModeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Solve a version's facts again, on another version or base."""
    import sys

    from reviver.cli.apply import render_plan
    from reviver.cli.output import make_console
    from reviver.verbs.reapply import reapply as run_reapply

    given = {"apply.link_mode": link_mode, "apply.device": device, "apply.dtype": dtype}

    def announce(plan: ApplyPlan) -> None:
        if context.output.mode == "human":
            render_plan(make_console(sys.stderr), plan)

    report = run_reapply(
        context.directory,
        version,
        onto=onto,
        from_workspace=from_workspace,
        given={name: value for name, value in given.items() if value is not None},
        message=message,
        checkpoint=not no_checkpoint,
        dry_run=dry_run,
        announce=announce,
        progress=context.output.progress(),
    )
    for warning in report.applied.warnings:
        context.output.warn(warning)
    if dry_run:
        context.output.result(report, render=lambda console, report: render_plan(console, report.applied.plan))
        context.output.hint("leave `--dry-run` out to do it")
        return
    context.output.result(report, render=_render, quiet=lambda report: report.applied.version or "")
    context.output.hint(f"see what changed with `reviver diff {report.applied.plan.parent} {report.applied.version}`")


def _render(console: Console, report: ReapplyReport) -> None:
    from reviver.cli.apply import render_apply

    first = "" if report.efficacy_first is None else f", efficacy {report.efficacy_first:.1%} when it was made"
    console.print(f"solved again for the facts of {report.source} {report.source_id[:12]}{first}")
    render_apply(console, report.applied)
