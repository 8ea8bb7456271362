"""reviver checkout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import LinkModeOption
from reviver.text import human_bytes, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.checkout import CheckoutReport


@verb
def checkout(
    context: Context,
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="A version, as in `show`; the head without one.")
    ] = "head",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write here, not to `checkpoints/vN`.", show_default=False),
    ] = None,
    link_mode: LinkModeOption = None,
) -> None:
    """Write the checkpoint of a version."""
    from reviver.verbs.checkout import checkout as run_checkout

    mode = context.settings(apply_link_mode=link_mode).apply.link_mode
    report = run_checkout(
        context.directory,
        version,
        output=output,
        link_mode=None if mode == "auto" else mode,
        progress=context.output.progress(),
    )
    context.output.result(report, render=_render, quiet=lambda report: str(report.path))


def _render(console: Console, report: CheckoutReport) -> None:
    path = printable(str(report.path))
    if report.already:
        console.print(f"{path} is {report.version} already, every byte of it")
        return
    linked = "" if report.link_mode is None else f", unchanged shards by {report.link_mode}"
    console.print(
        f"wrote {report.version} to {path}: {plural(report.files, 'file')}, "
        f"{human_bytes(report.bytes_written)} written{linked}"
    )
