"""reviver status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reviver.cli.command import Context, verb
from reviver.text import plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.status import StatusReport, TouchedPath

_SHOWN_FILES = 10


@verb
def status(context: Context) -> None:
    """Show the base, the head and the next step."""
    from reviver.verbs.status import status as run_status

    report = run_status(context.directory)
    context.output.result(report, render=_render, quiet=lambda report: report.head)
    context.output.hint(report.next_step)


def _render(console: Console, report: StatusReport) -> None:
    if report.base is None:
        console.print("base      not pinned yet")
    else:
        revision = f"@{report.base.revision[:12]}" if report.base.revision else ""
        prepared = plural(len(report.base.edited), "edited tensor")
        console.print(f"base      {printable(report.base.model)}{revision} ({prepared})")
    message = f": {printable(report.head_message.splitlines()[0], 80)}" if report.head_message else ""
    console.print(f"head      {report.head}{message} ({plural(report.facts, 'fact')} applied)")
    written = sum(one.state != "missing" for one in report.checkpoints)
    console.print(f"versions  {report.versions:,}, {plural(written, 'checkpoint')} written")
    if report.base is not None:
        for missing, what in (
            (report.base.spectra_missing, "spectral basis"),
            (report.base.statistics_missing, "second moment"),
        ):
            if missing:
                nouns = "spectral bases" if what == "spectral basis" else None
                console.print(f"missing   {plural(len(missing), what, nouns)}, first {printable(missing[0], 80)}")
        _touched(console, "base", report.base.touched)
    for one in report.checkpoints:
        _touched(console, f"checkpoints/{one.version}", one.touched)
    for problem in report.problems:
        console.print(f"damaged   {problem}")
    if report.writer is not None:
        console.print(f"writing   `reviver {report.writer.verb}`, process {report.writer.pid} on {report.writer.host}")
    if report.leftovers:
        console.print(
            f"leftover  {plural(len(report.leftovers), 'half-made file')}; the next writing command removes it"
        )
    if report.rounds_kept:
        console.print(
            f"waiting   {plural(report.rounds_kept, 'finished round')} of an `apply` that can be run again to go on"
        )
    if report.clean:
        console.print("nothing was touched (size and time; `reviver verify` reads every byte)")


def _touched(console: Console, where: str, files: tuple[TouchedPath, ...]) -> None:
    words = {
        "missing": "is missing",
        "size": "has another size",
        "time": "was written since",
        "extra": "was added",
        "version": "was written for another version that had this name",
    }
    for file in files[:_SHOWN_FILES]:
        path = where if file.path == "." else f"{where}/{printable(file.path)}"
        console.print(f"touched   {path} {words[file.what]}")
    if len(files) > _SHOWN_FILES:
        console.print(f"          and {len(files) - _SHOWN_FILES} more in {where}")
