"""reviver eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import DeviceOption, DtypeOption
from reviver.cli.suites import render_numbers, told
from reviver.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from reviver.verbs.eval import EvalReport


@verb
def eval_(
    context: Context,
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="A version, as in `show`; the head without one.")
    ] = "head",
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="counterfact, zsre, fluency, perplexity, pairs, drift or lm-eval; may be given again. Without it, all "
            "that have what they need, but zsre.",
            show_default=False,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option("--facts", metavar="FILE", help="Measure these facts, not the version's own.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text or JSONL to measure perplexity on. Without it, the base writes its own.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs", metavar="FILE", help="Minimal pairs: JSONL with `good`, `bad`, `paradigm`.", show_default=False
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="A task of lm-eval; may be given again.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="At most N examples of each task.", min=1, show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The seed of the generations.", min=0)] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure a version: facts, fluency, perplexity, drift."""
    settings = context.settings(apply_device=device, apply_dtype=dtype)
    from reviver.verbs.eval import EvalRequest, evaluate

    request = EvalRequest(
        suites=tuple(suite or ()),
        facts=facts,
        text=text,
        pairs=pairs,
        tasks=tuple(task or ()),
        limit=limit,
        seed=seed,
    )
    report = evaluate(context.directory, version, request, settings=settings, progress=context.output.progress())
    context.output.result(report, render=_render, quiet=lambda report: report.version)


def _render(console: Console, report: EvalReport) -> None:
    console.print(f"{report.version} {report.id[:12]}")
    for result in report.suites:
        console.print()
        render_numbers(console, result.suite, result.metrics)
        draw = _GROUPS.get(result.suite)
        if draw is not None:
            draw(console, result.metrics)


_LEAST_IN_BLOCKS = 50


def _render_ages(console: Console, metrics: Mapping[str, Any]) -> None:
    from reviver.cli.output import make_table

    for key, heading in (("ages", "version"), ("blocks", "block")):
        groups = metrics.get(key) or []
        # One version's own facts are the numbers above, and blocks of few facts say nothing.
        if len(groups) < 2 or (key == "blocks" and groups[-1]["last"] < _LEAST_IN_BLOCKS):
            continue
        table = make_table(f"  {heading}", "facts", "efficacy", "ES", right=("facts", "efficacy", "ES"))
        for group in groups:
            table.add_row(
                f"  {group['name']}",
                f"{group['first']:,}-{group['last']:,}",
                f"{group['efficacy']:.1%}",
                told("es", group["es"]),
            )
        console.print(table)


def _render_paradigms(console: Console, metrics: Mapping[str, Any]) -> None:
    from reviver.cli.output import make_table

    if len(metrics["paradigms"]) > 1:
        table = make_table("  paradigm", "accuracy", right=("accuracy",))
        for name, share in sorted(metrics["paradigms"].items(), key=lambda one: one[1]):
            table.add_row(f"  {printable(name, 60)}", f"{share:.1%}")
        console.print(table)


def _render_tensors(console: Console, metrics: Mapping[str, Any]) -> None:
    from reviver.cli.output import make_table

    headers = ("k", "subspace left", "right", "norm growth")
    table = make_table("  tensor", *headers, right=headers)
    for tensor in metrics["tensors"]:
        table.add_row(
            f"  {printable(tensor['name'], 80)}",
            str(tensor["rank"]),
            f"{tensor['subspace_left']:.3f}",
            f"{tensor['subspace_right']:.3f}",
            f"{tensor['norm_growth']:.3f}",
        )
    console.print(table)


def _render_tasks(console: Console, metrics: Mapping[str, Any]) -> None:
    for name, found in metrics["tasks"].items():
        shown = ", ".join(f"{printable(key, 40)} {value:.4g}" for key, value in found.items())
        console.print(f"  {printable(name, 60)}: {shown}")


_GROUPS = {
    "counterfact": _render_ages,
    "pairs": _render_paradigms,
    "drift": _render_tensors,
    "lm-eval": _render_tasks,
}
