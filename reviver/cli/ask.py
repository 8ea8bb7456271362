"""reviver ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import DeviceOption, DtypeOption
from reviver.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.ask import AskReport


@verb
def ask(
    context: Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from.", show_default=False)],
    versions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VERSION", help="Versions, as in `show`; the base and the head without any.", show_default=False
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="The length of an answer in tokens at most.")
    ] = 20,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Show what several versions answer, side by side."""
    settings = context.settings(apply_device=device, apply_dtype=dtype)
    from reviver.verbs.ask import ask as run_ask

    report = run_ask(context.directory, prompt, tuple(versions or ()), settings=settings, tokens=tokens)
    context.output.result(report, render=_render, quiet=lambda report: report.answers[-1].answer)


def _render(console: Console, report: AskReport) -> None:
    from reviver.cli.output import make_table

    table = make_table("version", "answer")
    for one in report.answers:
        table.add_row(one.version, printable(one.answer))
    console.print(table)
