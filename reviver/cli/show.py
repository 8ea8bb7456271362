"""reviver show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import human_bytes, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.history.manifest import Sides
    from reviver.verbs.show import ShowReport


@verb
def show(
    context: Context,
    version: Annotated[
        str,
        typer.Argument(
            metavar="[VERSION]", help="A version: `v3`, `head`, `base`, `head~2`, a tag, or the beginning of its id."
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
    for name, value in report.metrics.items():
        if isinstance(value, int | float | str):
            console.print(f"{printable(name, 40)}  {printable(str(value), 80)}")
    for evaluation in report.evaluations:
        numbers = ", ".join(f"{printable(name, 40)} {_measured(value)}" for name, value in evaluation.metrics.items())
        console.print(f"{printable(evaluation.suite, 40)} of {printable(evaluation.created, 40)}  {numbers}")
    _render_facts(console, report)
    _render_tensors(console, report)


def _render_facts(console: Console, report: ShowReport) -> None:
    from reviver.cli.output import make_table

    if not report.facts_total:
        return
    outcome = "" if report.successes is None else f", {report.successes:,} answered as wanted"
    console.print(f"\n{plural(report.facts_total, 'fact')}{outcome}")
    table = make_table("", "prompt", "wanted", "before", "after", "p before", "p after", right=("p before", "p after"))
    for fact in report.facts:
        table.add_row(
            {True: "+", False: "-", None: " "}[fact.success],
            printable(fact.text, 70),
            printable(fact.target_new, 30),
            printable(fact.answer_before or "", 30),
            printable(fact.answer_after or "", 30),
            _number(fact.probability_before),
            _number(fact.probability_after),
        )
    console.print(table)
    hidden = report.facts_total - len(report.facts)
    if hidden:
        console.print(f"and {hidden:,} more (`--facts` shows all)")


def _render_tensors(console: Console, report: ShowReport) -> None:
    from reviver.cli.output import make_table

    if not report.tensors:
        return
    console.print(f"\n{plural(len(report.tensors), 'tensor')}")
    headers = (
        "tensor",
        "dtype",
        "patch rank",
        "k",
        "norm",
        "before filter",
        "relative",
        "captured",
        "leakage",
        "similar",
    )
    table = make_table(*headers, right=headers[2:])
    for tensor in report.tensors:
        table.add_row(
            printable(tensor.name, 80),
            tensor.dtype,
            "dense" if tensor.patch_rank is None else str(tensor.patch_rank),
            "" if tensor.protected_rank is None else str(tensor.protected_rank),
            _number(tensor.norm),
            _number(tensor.norm_before_filter),
            _number(tensor.relative_norm),
            _number(tensor.captured_fraction),
            _sides(tensor.leakage_after_rounding),
            _sides(tensor.subspace_similarity),
        )
    console.print(table)


def _measured(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _sides(sides: Sides | None) -> str:
    return "" if sides is None else f"{sides.left:.3g} / {sides.right:.3g}"
