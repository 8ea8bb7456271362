"""reviver show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from reviver.cli.command import Context, verb
from reviver.cli.shares import told_counts, told_shares
from reviver.cli.suites import render_numbers
from reviver.cli.tensors import tensor_table
from reviver.text import human_bytes, plural, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from reviver.verbs.show import ShowReport


@verb
def show(
    context: Context,
    version: Annotated[
        str,
        typer.Argument(
            metavar="[VERSION]",
            help="A version: `v3`, `head`, `base`, `head~2`, a tag, or the beginning of its id; the head without one.",
        ),
    ] = "head",
    facts: Annotated[bool, typer.Option("--facts", help="Show all facts, not only the first ten.")] = False,
) -> None:
    """Show one version: facts, tensors, files, metrics."""
    from reviver.verbs.show import SHOWN_FACTS
    from reviver.verbs.show import show as run_show

    report = run_show(context.directory, version, facts=None if facts else SHOWN_FACTS)
    context.output.result(report, render=_render, quiet=lambda report: report.id)


def _render(console: Console, report: ShowReport) -> None:
    console.print(f"{report.version}{' (head)' if report.head else ''}  {report.id}")
    if report.message:
        console.print(f"  {printable(report.message)}")
    revision = f"@{report.base.revision[:12]}" if report.base.revision else ""
    console.print(f"base        {printable(report.base.model)}{revision}")
    if report.editor is not None and report.filter is not None:
        console.print(f"parent      {report.parent}, made {report.created}")
        protected = (
            f", rank {report.filter.rank}"
            if report.filter.rank is not None
            else f", energy {report.filter.energy:g}"
            if report.filter.energy is not None
            else ""
        )
        source = f", {printable(report.editor.reference_url)}" if report.editor.reference_url else ""
        console.print(f"editor      {printable(report.editor.name)}{source}")
        console.print(f"filter      {printable(report.filter.name)}{protected}")
        console.print(f"patch       {human_bytes(report.patch_bytes or 0)}, {(report.patch_sha256 or '')[:8]}")
    where = "not written" if report.checkpoint is None else str(report.checkpoint)
    changed = [file for file in report.files if file.changed]
    console.print(f"checkpoint  {printable(where)}: {plural(len(report.files), 'file')}, {len(changed)} changed")
    _render_measured(console, report.metrics)
    for evaluation in report.evaluations:
        render_numbers(console, evaluation.suite, evaluation.metrics, when=f" of {printable(evaluation.created, 40)}")
    _render_facts(console, report)
    if report.tensors:
        console.print(f"\n{plural(len(report.tensors), 'tensor')}")
        console.print(tensor_table(report.tensors, leakage=True))


def _render_measured(console: Console, metrics: Mapping[str, Any]) -> None:
    """Draw what was measured when the version was made, which a manifest that anybody wrote may name as it likes."""
    shares = told_shares({name: value for name, value in metrics.items() if type(value) in (int, float)})
    if shares:
        counts = told_counts({name: value for name, value in metrics.items() if type(value) is int})
        console.print(f"measured    {shares}{f' ({counts})' if counts else ''}")
    gates = metrics.get("gates")
    held = [str(one["gate"]) for one in gates if isinstance(one, dict) and "gate" in one] if type(gates) is list else []
    if held:
        console.print(f"gates met   {printable(', '.join(held), 200)}")


def _render_facts(console: Console, report: ShowReport) -> None:
    from reviver.cli.output import make_table

    if not report.facts_total:
        return
    outcome = "" if report.successes is None else f", {report.successes:,} answered as wanted"
    console.print(f"\n{plural(report.facts_total, 'fact')}{outcome}")
    if not report.facts:
        # They are withheld or damaged, which a warning tells.
        return
    headers = ("id", "prompt", "wanted", "before", "after", "p before", "p after", "")
    table = make_table(*headers, right=("p before", "p after"))
    for fact in report.facts:
        table.add_row(
            printable(fact.id, 40),
            printable(fact.text, 70),
            printable(fact.target_new, 30),
            printable(fact.answer_before or "", 30),
            printable(fact.answer_after or "", 30),
            _probability(fact.probability_before),
            _probability(fact.probability_after),
            {True: "✓", False: "✗", None: ""}[fact.success],
        )
    console.print(table)
    hidden = report.facts_total - len(report.facts)
    if hidden:
        console.print(f"and {hidden:,} more (`--facts` shows all)")


def _probability(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
