"""reviver tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.tag import Tag, TagReport


@verb
def tag(
    context: Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The tag; without it, all tags are listed.", show_default=False),
    ] = None,
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]", help="The version that it names; the head if left out.", show_default=False
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("-d", "--delete", help="Take the tag away; the version stays.")] = False,
) -> None:
    """Name a version, or list the names."""
    from reviver.verbs.tag import delete_tag, list_tags
    from reviver.verbs.tag import tag as set_tag

    if delete and (name is None or version is not None):
        raise UsageError("`--delete` takes the name of one tag", hint="as in `reviver tag --delete NAME`")
    if name is None:
        report = list_tags(context.directory)
    elif delete:
        report = delete_tag(context.directory, name)
    else:
        report = set_tag(context.directory, name, "head" if version is None else version)
    context.output.result(report, render=_render, quiet=_quiet)
    if report.did == "listed" and not report.tags:
        context.output.hint("name a version with `reviver tag NAME [VERSION]`")


def _render(console: Console, report: TagReport) -> None:
    from reviver.cli.output import make_table

    if report.tag is not None:
        said = {"set": "names", "kept": "names already", "deleted": "is gone; it named"}[report.did]
        console.print(f"{report.tag.name} {said} {_named(report.tag)}")
    elif report.tags:
        table = make_table("tag", "version", "id")
        for one in report.tags:
            table.add_row(one.name, one.version or "not here", one.id[:12])
        console.print(table)


def _named(tag: Tag) -> str:
    return f"{tag.version or 'a version that is not here'} ({tag.id[:12]})"


def _quiet(report: TagReport) -> str:
    return " ".join(one.name for one in report.tags) if report.tag is None else report.tag.name
