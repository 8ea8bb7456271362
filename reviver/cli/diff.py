"""reviver diff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import human_bytes, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.history.comparison import FactChange, FileChange, TensorChange
    from reviver.verbs.diff import DiffReport

_SHOWN_FACTS = 50


@verb
def diff(
    context: Context,
    before: Annotated[
        str, typer.Argument(metavar="A", help="A version, as in `show`; or both, as `A..B`.", show_default=False)
    ],
    after: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The other version; the head without one.", show_default=False)
    ] = None,
    stat: Annotated[bool, typer.Option("--stat", help="Counts only, computed from the manifests alone.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 3 where something differs.")] = False,
) -> None:
    """Show what changed between two versions."""
    from reviver.history.names import split_range
    from reviver.verbs.diff import diff as run_diff

    if after is None:
        before, after = split_range(before) or (before, "head")
    report = run_diff(context.directory, before, after, measure=not stat, progress=context.output.progress())

    def render(console: Console, report: DiffReport) -> None:
        _render(console, report, stat=stat, every_fact=context.verbose)

    context.output.result(report, render=render, quiet=lambda report: report.summary)
    if exit_code and not report.same:
        raise typer.Exit(3)


def _render(console: Console, report: DiffReport, *, stat: bool, every_fact: bool) -> None:
    console.print(report.summary)
    if stat:
        for file in report.files:
            console.print(f"  {_file(file)}")
        return
    facts = (*report.facts_added, *report.facts_changed, *report.facts_dropped)
    if facts:
        console.print("\nfacts")
        for fact in facts if every_fact else facts[:_SHOWN_FACTS]:
            console.print(f"  {_fact(fact)}")
        if len(facts) > _SHOWN_FACTS and not every_fact:
            console.print(f"  and {plural(len(facts) - _SHOWN_FACTS, 'fact')} more (`-v` shows all)")
    if report.tensors:
        console.print("\ntensors")
        console.print(_tensors(report.tensors))
    if report.files:
        console.print("\nfiles")
        for file in report.files:
            console.print(f"  {_file(file)}")


def _fact(fact: FactChange) -> str:
    text = printable(fact.prompt.replace("{}", fact.subject, 1), 100)
    before, after = (None if one is None else printable(one, 60) for one in (fact.before, fact.after))
    if before is None:
        return f"+ {text} → {after} ({fact.version})"
    if after is None:
        return f"- {text} → {before} ({fact.version})"
    return f"~ {text}: {before} → {after} ({fact.version})"


def _tensors(tensors: tuple[TensorChange, ...]) -> object:
    from reviver.cli.output import make_table

    table = make_table("  tensor", "shard", "‖Δ‖/‖W‖", "captured", "bytes", right=("‖Δ‖/‖W‖", "captured"))
    for tensor in tensors:
        table.add_row(
            f"  {printable(tensor.name, 80)}",
            printable(tensor.shard, 60),
            "-" if tensor.relative_norm is None else f"{tensor.relative_norm:.2%}",
            "-" if tensor.captured_fraction is None else f"{tensor.captured_fraction:.2%}",
            f"{tensor.before_sha256[:8]}..{tensor.after_sha256[:8]}",
        )
    return table


def _file(file: FileChange) -> str:
    before, after = (sha256[:8] if sha256 else "0" * 8 for sha256 in (file.before_sha256, file.after_sha256))
    sign = "+" if file.before_sha256 is None else "-" if file.after_sha256 is None else "~"
    size = file.after_size if file.after_size is not None else file.before_size or 0
    return f"{sign} {printable(file.path, 100)}  {before}..{after}  {human_bytes(size)}"
