"""reviver verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.text import plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.history.verification import Finding
    from reviver.verbs.guarantee import Guarantee
    from reviver.verbs.verify import VerifyReport

_COLUMNS = {
    "history": (),
    "bytes": ("checkpoint",),
    "rebuild": ("checkpoint", "rebuilt"),
    "filter": ("checkpoint", "rebuilt", "filter"),
}
_SHOWN_WITHHELD = 10
# What belongs to this machine alone can be had again from nowhere.
_OWN_HINTS = {
    ".reviver/HEAD": "write the name of a version from `reviver log` into it",
    ".reviver/operations.jsonl": "move it away: only `undo` needs it, the history itself is in `edits/`",
}


@verb
def verify(
    context: Context,
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="A version, as in `show`; without it, all.", show_default=False),
    ] = None,
    level: Annotated[
        str,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="How far to go, each with those before it: `history` (manifests, hash chain, patches; reads no weights), "
            "`bytes` (every file by its hash), `rebuild` (every version made again from the base), `filter` (patches "
            "keep out of the directions they claim to protect).",
        ),
    ] = "filter",
) -> None:
    """Rebuild a version and compare every byte."""
    from reviver.errors import CheckFailedError
    from reviver.verbs.verify import verify as run_verify

    report = run_verify(context.directory, version, level=level, progress=context.output.progress())
    context.output.result(report, render=_render, quiet=lambda report: "ok" if report.ok else "failed")
    if not report.ok:
        first = report.findings[0]
        more = len(report.findings) - 1
        raise CheckFailedError(
            f"{_where(first)}: {first.problem}" + (f" (and {plural(more, 'more finding')})" if more else ""),
            hint=_hint(first),
            findings=report.findings,
        )


def _render(console: Console, report: VerifyReport) -> None:
    from reviver.cli.output import make_table

    broken = sum(finding.version == "v0" for finding in report.findings)
    read = f"{plural(report.base_files, 'file')} read" if report.level != "history" else "not read"
    console.print(f"base: {read}, {plural(broken, 'finding')}")
    table = make_table("version", *_COLUMNS[report.level], "findings", right=("findings",))
    for one in report.versions:
        told = (
            f"{plural(one.files, 'file')} read" if one.checkpoint else "not written",
            plural(one.tensors, "tensor") if one.rebuilt else "",
            _guarantee(one.guarantee),
        )
        table.add_row(one.version, *told[: len(_COLUMNS[report.level])], f"{one.findings:,}")
    if report.versions:
        console.print(table)
    for finding in report.findings:
        console.print(f"{_where(finding)}: {printable(finding.problem)}")
    withheld = [one.version for one in report.versions if one.withheld]
    if withheld:
        names = ", ".join(withheld[:_SHOWN_WITHHELD]) + (" …" if len(withheld) > _SHOWN_WITHHELD else "")
        console.print(f"facts withheld: {names} (published without their text; the manifest holds their hash)")
    if report.ok:
        console.print(
            "everything holds" if report.level == "filter" else f"everything holds up to level {report.level}"
        )


def _guarantee(proven: Guarantee | None) -> str:
    if proven is None:
        return ""
    if proven.leak is None:
        return "claims none"
    left_out = f", {plural(proven.undetermined, 'direction')} undetermined" if proven.undetermined else ""
    return f"{plural(proven.tensors, 'tensor')}, leak {proven.leak:.0e}{left_out}"


def _where(finding: Finding) -> str:
    parts = [part for part in (finding.path, finding.tensor) if part is not None]
    return printable(" ".join([finding.version, *parts]), 300)


def _hint(finding: Finding) -> str:
    if finding.path in _OWN_HINTS:
        return _OWN_HINTS[finding.path]
    if finding.path is not None and finding.path.startswith("checkpoints/"):
        return f"move `checkpoints/{finding.version}` away and write it again with `reviver checkout {finding.version}`"
    if finding.path is not None and finding.path.startswith("edits/"):
        return "restore it with git, or get it again from the Hub"
    if finding.version == "v0":
        return "restore the file, or fetch the base again with `reviver init MODEL`"
    return (
        f"get `edits/{finding.version}` again from where it came; a patch that was never sound can be dropped with "
        f"`reviver revert {finding.version}`"
    )
