"""`reviver demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.outcomes import outcome_table
from reviver.cli.output import make_table
from reviver.text import human_bytes, plural

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.demo import DemoReport

SHOWN_FACTS = 12


@verb
def demo(
    context: Context,
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="A new folder for the workspace; a temporary one without it.", show_default=False
        ),
    ] = None,
) -> None:
    """Tell the whole story in a minute, offline."""
    from reviver.verbs.demo import demo as run_demo

    report = run_demo(directory, announce=context.output.note, progress=context.output.progress())
    context.output.result(report, render=render_demo, quiet=lambda report: str(report.workspace))
    context.output.hint(f"look around with `reviver log -C {report.workspace}`")


def render_demo(console: Console, report: DemoReport) -> None:
    """Draw what the demo saw."""
    edit = report.edit
    console.print()
    corrections = plural(edit.plan.facts, "correction")
    console.print(f"The model before and after {corrections} in one patch of {human_bytes(edit.patch_bytes)}:")
    console.print(outcome_table(edit.results[:SHOWN_FACTS]))
    console.print()
    console.print("The same fact in other words, and a neighbour that was not meant:")
    others = make_table("prompt", "before", "after", "")
    for probe in report.probes:
        others.add_row(probe.prompt, probe.before, probe.after, "✓" if probe.as_wished else "✗")
    console.print(others)
    console.print()
    console.print(report.difference.summary)
    rebuilt = "every changed byte rebuilt from base and patch" if report.proof.ok else "NOT what base and patch give"
    console.print(f"verified: {plural(report.proof.base_files, 'file')} of the base untouched, {rebuilt}")
    console.print()
    console.print("What the same batch does to the model with the filter and without it:")
    table = make_table(
        "version", "filter", "efficacy", "paraphrase", "neighbours kept", "perplexity",
        right=("efficacy", "paraphrase", "neighbours kept", "perplexity"),
    )  # fmt: skip
    for ability in report.abilities:
        summary = ability.summary
        shares = (
            (None, None, None) if summary is None else (summary.efficacy, summary.paraphrase, summary.neighbors_kept)
        )
        table.add_row(
            ability.version,
            ability.filter or "-",
            *("-" if share is None else f"{share:.1%}" for share in shares),
            f"{ability.perplexity:.3f}",
        )
    console.print(table)
    console.print(f"{report.seconds:.0f} seconds in all; the workspace is {report.workspace}")
