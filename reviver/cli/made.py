"""What the commands draw alike that make a version from patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reviver.cli.outcomes import outcome_table
from reviver.cli.shares import SHARES
from reviver.cli.tensors import tensor_table
from reviver.text import human_bytes, human_duration, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.evaluation.outcomes import Summary
    from reviver.verbs.made import MadeReport

SHOWN_FACTS = 10


def render_made(console: Console, report: MadeReport, *, dropped: bool = True) -> None:
    """Draw a new version: what it holds, what became of the facts and tensors, where its checkpoint is.

    Args:
        dropped: draw the facts that are no longer held; a command that shows them in its own way leaves them out here.
    """
    gone = f", {report.facts_dropped:,} no longer" if report.facts_dropped else ""
    console.print(
        f"{report.version} {report.id[:12]} on {report.parent}: {plural(report.facts_in_force, 'fact')} in force{gone}, "
        f"a patch of {human_bytes(report.patch_bytes)}"
    )
    outcomes = report.outcomes
    if outcomes is not None and outcomes.results:
        console.print(f"facts in force: {_shares(outcomes.before, outcomes.after)}")
        turned = [one for one in outcomes.results if one.before.answer != one.after.answer]
        if turned:
            console.print(f"{plural(len(turned), 'of their answers', 'of their answers')} changed")
            console.print(outcome_table(turned[:SHOWN_FACTS]))
            _hidden(console, len(turned), report.version)
    if outcomes is not None and outcomes.dropped and dropped:
        console.print("no longer in force")
        console.print(outcome_table(outcomes.dropped[:SHOWN_FACTS]))
        _hidden(console, len(outcomes.dropped), report.version)
    for loss in report.losses:
        console.print(
            f"`{printable(loss.name, 80)}` became a float32 matrix: {loss.entries:,} of {loss.total:,} stored entries differ"
            + (f", by {loss.largest:.3g} at most" if loss.entries else "")
        )
    console.print(tensor_table(report.tensors))
    if report.checkpoint is not None:
        console.print(f"checkpoint {printable(str(report.checkpoint))}")
    console.print(
        "took " + ", ".join(f"{phase} {human_duration(seconds)}" for phase, seconds in report.seconds.items())
    )


def _shares(before: Summary, after: Summary) -> str:
    pairs = ((told, getattr(before, name), getattr(after, name)) for name, told in SHARES.items())
    return ", ".join(f"{told} {old:.1%} → {new:.1%}" for told, old, new in pairs if old is not None and new is not None)


def _hidden(console: Console, count: int, version: str) -> None:
    if count > SHOWN_FACTS:
        console.print(f"… and {count - SHOWN_FACTS:,} more in `edits/{version}/results.jsonl`")
