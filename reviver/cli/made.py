"""What the commands draw alike that make a version from patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reviver.cli.outcomes import outcome_table
from reviver.cli.output import make_table
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
    headers = ("tensor", "patch rank", "‖Δ‖", "‖Δ‖/‖W‖", "captured")
    table = make_table(*headers, right=headers[1:])
    for tensor in report.tensors:
        table.add_row(
            printable(tensor.name, 80),
            "dense" if tensor.patch_rank is None else str(tensor.patch_rank),
            f"{tensor.norm:.3g}",
            f"{tensor.relative_norm:.2%}",
            "-" if tensor.captured_fraction is None else f"{tensor.captured_fraction:.2%}",
        )
    console.print(table)
    if report.checkpoint is not None:
        console.print(f"checkpoint {printable(str(report.checkpoint))}")
    console.print(
        "took " + ", ".join(f"{phase} {human_duration(seconds)}" for phase, seconds in report.seconds.items())
    )


def _shares(before: Summary, after: Summary) -> str:
    shares = (
        ("efficacy", before.efficacy, after.efficacy),
        ("paraphrase", before.paraphrase, after.paraphrase),
        ("neighbours kept", None, after.neighbors_kept),
    )
    return ", ".join(
        f"{name} {new:.1%}" if old is None else f"{name} {old:.1%} → {new:.1%}"
        for name, old, new in shares
        if new is not None
    )


def _hidden(console: Console, count: int, version: str) -> None:
    if count > SHOWN_FACTS:
        console.print(f"… and {count - SHOWN_FACTS:,} more in `edits/{version}/results.jsonl`")
