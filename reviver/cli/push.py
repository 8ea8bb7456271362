"""reviver push."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import human_bytes, plural

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.push import PushReport

_WORDS = {"add": "send", "copy": "copy on the Hub", "delete": "remove", "keep": "keep"}


@verb
def push(
    context: Context,
    repository: Annotated[
        str | None,
        typer.Argument(
            metavar="[REPO]",
            help="`org/name`, or `name` alone for your own; without it, the repository of the last push.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[str, typer.Option("--from", metavar="VERSION", help="The version to publish.")] = "head",
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; without it, private.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="ID", help="The base that the card names.", show_default=False)
    ] = None,
    include_facts: Annotated[
        bool, typer.Option("--include-facts", help="Publish the facts' text too, not only its hash.")
    ] = False,
    message: Annotated[
        str | None, typer.Option("-m", "--message", metavar="TEXT", help="The title of the commit.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent, file by file.")] = False,
) -> None:
    """Publish the head on the Hub, with its history."""
    from reviver.verbs.push import push as run_push

    report = run_push(
        context.directory,
        repository,
        version=version,
        public=public,
        base_model=base_model,
        include_facts=include_facts,
        dry_run=dry_run,
        message=message,
        progress=context.output.progress(),
    )

    def render(console: Console, report: PushReport) -> None:
        _render(console, report, every_file=context.verbose)

    context.output.result(report, render=render, quiet=lambda report: report.commit or report.url)
    if report.dry_run and report.done:
        context.output.hint("run it without `--dry-run` to publish")


def _render(console: Console, report: PushReport, *, every_file: bool) -> None:
    from reviver.cli.output import make_table

    kind = "public" if report.private is False else "private"
    where = f"{report.repository} ({'new, ' if report.created else ''}{kind})"
    if not report.done:
        console.print(f"{report.version} is already at {report.url}")
        return
    console.print(f"{'would push' if report.dry_run else 'pushed'} {report.version} to {where}")
    if report.replaces is not None:
        console.print(f"in place of {report.replaces}, which keeps its tag")
    shown = [one for one in report.operations if every_file or one.action != "keep"]
    table = make_table("", "bytes", "file", right=("bytes",))
    for operation in shown:
        table.add_row(_WORDS[operation.action], human_bytes(operation.size), operation.path)
    if shown:
        console.print(table)
    kept = len(report.operations) - len([one for one in report.operations if one.action != "keep"])
    parts = [f"{human_bytes(report.bytes_added)} {'to send' if report.dry_run else 'sent'}"]
    if report.bytes_copied:
        parts.append(f"{human_bytes(report.bytes_copied)} copied by the Hub")
    if kept:
        parts.append(f"{plural(kept, 'file')} there already")
    console.print(", ".join(parts))
    if not report.facts_included:
        console.print("without the facts' text (`--include-facts` adds it)")
    if report.commit is not None:
        console.print(f"{report.url}/commit/{report.commit}")
