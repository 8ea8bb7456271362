"""`reviver apply`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import (
    DeviceOption,
    DtypeOption,
    EditorOption,
    EnergyOption,
    FactsArgument,
    FilterOption,
    LinkModeOption,
    MessageOption,
    NoCheckpointOption,
    OffloadOption,
    RankOption,
    RoundSizeOption,
)
from reviver.cli.outcomes import outcome_table
from reviver.cli.output import make_console, make_table
from reviver.cli.shares import told_shares
from reviver.cli.tensors import tensor_table
from reviver.errors import UsageError
from reviver.text import human_bytes, human_duration, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.apply import ApplyReport
    from reviver.verbs.plan import ApplyPlan

SHOWN_FACTS = 10


@verb
def apply(
    context: Context,
    facts: FactsArgument,
    rank: RankOption = None,
    energy: EnergyOption = None,
    filter: FilterOption = None,
    editor: EditorOption = None,
    from_: Annotated[
        str, typer.Option("--from", metavar="VERSION", help="The version to stand on.", envvar="REVIVER_FROM")
    ] = "head",
    message: MessageOption = "",
    round_size: RoundSizeOption = None,
    on_conflict: Annotated[
        str,
        typer.Option(
            "--on-conflict",
            metavar="error|last",
            help="What becomes of facts in the file that contradict each other.",
            envvar="REVIVER_ON_CONFLICT",
        ),
    ] = "error",
    skip_invalid: Annotated[
        bool,
        typer.Option("--skip-invalid", help="Set records that cannot be used aside, and go on.", show_default=False),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.", show_default=False)] = False,
    no_checkpoint: NoCheckpointOption = False,
    gate: Annotated[
        str | None,
        typer.Option(
            "--gate",
            metavar="CONDITIONS",
            help="Refuse a version that misses one: `es>=0.9,perplexity<=1.05x` (`x`: times the parent's).",
            show_default=False,
        ),
    ] = None,
    gate_text: Annotated[
        Path | None,
        typer.Option(
            "--gate-text",
            metavar="FILE",
            help="Text for the gate on perplexity. Without it, the base writes its own.",
            show_default=False,
        ),
    ] = None,
    link_mode: LinkModeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: OffloadOption = None,
) -> None:
    """Write a file of facts into the model as a new version."""
    if on_conflict not in ("error", "last"):
        raise UsageError(
            f"`--on-conflict` cannot be `{printable(on_conflict, 40)}`", hint="use `--on-conflict error` or `last`"
        )
    settings = context.settings(
        apply_rank=rank,
        apply_energy=energy,
        apply_filter=filter,
        apply_editor=editor,
        apply_round_size=round_size,
        apply_link_mode=link_mode,
        apply_device=device,
        apply_dtype=dtype,
        apply_offload=offload,
    )
    from reviver.editing.following import with_all_ranks
    from reviver.verbs.apply import ApplyRequest
    from reviver.verbs.apply import apply as run_apply

    request = ApplyRequest(
        facts=facts,
        parent=from_,
        message=message,
        on_conflict="last" if on_conflict == "last" else "error",
        skip_invalid=skip_invalid,
        dry_run=dry_run,
        checkpoint=not no_checkpoint,
        gate=gate,
        gate_text=gate_text,
    )

    def announce(plan: ApplyPlan) -> None:
        if context.output.mode == "human":
            import sys

            render_plan(make_console(sys.stderr), plan)

    report = with_all_ranks(
        settings,
        lambda processes: run_apply(
            context.directory,
            request,
            settings=settings,
            announce=announce,
            progress=context.output.progress(),
            processes=processes,
        ),
    )
    if report is None:
        return
    if dry_run:
        context.output.result(report, render=lambda console, report: render_plan(console, report.plan))
        context.output.hint("leave `--dry-run` out to do it")
        return
    context.output.result(report, render=render_apply, quiet=lambda report: report.version or "")
    context.output.hint(f"see what changed with `reviver diff {report.plan.parent} {report.version}`")


def render_plan(console: Console, plan: ApplyPlan) -> None:
    """Draw what is going to be done."""
    from reviver.editing.memory import away_note

    console.print(
        f"plan: {plan.version} = {plan.parent} + {plural(plan.facts, 'fact')} in {plural(plan.rounds, 'round')}, "
        f"editor {plan.editor}, filter {plan.filter}, preset {plan.preset}, {plan.device}, {plan.dtype}"
    )
    table = make_table(
        "tensor", "shard", "dtype", "protected k", "energy", "patch rank", right=("protected k", "energy", "patch rank")
    )
    for tensor in plan.tensors:
        table.add_row(
            tensor.name,
            tensor.shard,
            tensor.dtype,
            "-" if tensor.protected_rank is None else str(tensor.protected_rank),
            "-" if tensor.protected_energy is None else f"{tensor.protected_energy:.1%}",
            "dense" if tensor.patch_rank is None else str(tensor.patch_rank),
        )
    console.print(table)
    if (note := away_note(plan.memory)) is not None:
        console.print(note)
    what = f"{plural(len(plan.shards), 'shard')} rewritten" if plan.checkpoint else "no checkpoint"
    console.print(
        f"{what}, at most {human_bytes(plan.bytes_to_write)} to write, {human_bytes(plan.free_bytes)} free; "
        f"about {human_bytes(plan.memory_bytes)} of memory and {human_duration(plan.seconds)}"
    )


def render_apply(console: Console, report: ApplyReport) -> None:
    """Draw what was done."""
    summary = report.summary
    size = human_bytes(report.patch_bytes)
    console.print(
        f"{report.version} {(report.id or '')[:12]}: {plural(report.plan.facts, 'fact')} in a patch of {size}"
    )
    if summary is not None:
        console.print(told_shares(asdict(summary)))
        if summary.known:
            console.print(f"{report.plan.parent} says {summary.known:,} of these facts already")
    if report.gates:
        console.print("gates " + ", ".join(f"{one.gate} ({one.value:.4g})" for one in report.gates))
    console.print(outcome_table(report.results[:SHOWN_FACTS], known=True))
    if len(report.results) > SHOWN_FACTS:
        console.print(
            f"… and {plural(len(report.results) - SHOWN_FACTS, 'more fact', 'more facts')}: `reviver show {report.version} --facts`"
        )
    console.print(tensor_table(report.tensors, planned=True))
    if report.checkpoint is not None:
        console.print(f"checkpoint {report.checkpoint}")
    console.print(
        "took " + ", ".join(f"{phase} {human_duration(seconds)}" for phase, seconds in report.seconds.items())
    )
