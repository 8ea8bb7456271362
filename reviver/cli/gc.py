"""reviver gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import human_bytes, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.gc import GcReport


@verb
def gc(
    context: Context,
    versions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VERSION]", help="Versions whose checkpoints go, as in `show`.", show_default=False),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", metavar="N", help="The N newest and the head's stay.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All checkpoints go, the head's too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove checkpoints, which can be written again."""
    from reviver.verbs.gc import gc as run_gc

    report = run_gc(context.directory, versions or (), keep=keep, everything=everything, dry_run=dry_run)
    context.output.result(report, render=_render, quiet=lambda report: str(report.bytes_freed))
    if report.removed and not dry_run:
        context.output.hint(f"write one again with `reviver checkout {report.removed[-1]}`")


def _render(console: Console, report: GcReport) -> None:
    would = "would remove" if report.dry_run else "removed"
    if report.removed:
        console.print(f"{would} {plural(len(report.removed), 'checkpoint')}: {', '.join(report.removed)}")
    if report.leftovers:
        console.print(f"{would} {plural(len(report.leftovers), 'leftover')} of killed processes")
        for path in report.leftovers:
            console.print(f"  {printable(path, 200)}")
    if not report.removed and not report.leftovers:
        console.print("nothing to remove")
    else:
        frees = "frees" if report.dry_run else "freed"
        console.print(f"{frees} {human_bytes(report.bytes_freed)} (what other links hold on to is not counted)")
    if report.not_written:
        console.print(f"not written: {', '.join(report.not_written)}")
    if report.kept:
        console.print(f"{'would keep' if report.dry_run else 'kept'} {', '.join(report.kept)}")
