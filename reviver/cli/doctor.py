"""reviver doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import CorpusOption, DeviceOption, DtypeOption
from reviver.text import human_bytes, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.doctor import DoctorReport, ModelReport
    from reviver.verbs.machine import MachineReport


@verb
def doctor(
    context: Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A folder, a Hub id, or `base` for the workspace's own; without one, the machine, or with facts the base.",
            show_default=False,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option("--facts", metavar="FILE", help="Facts whose subjects and targets are tried.", show_default=False),
    ] = None,
    corpus: CorpusOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Look at the machine, or whether a model can be edited."""
    settings = context.settings(moments_corpus=corpus, apply_device=device, apply_dtype=dtype)
    from reviver.verbs.doctor import doctor as run_doctor

    report = run_doctor(context.directory, model, settings=settings, facts=facts, progress=context.output.progress())
    context.output.result(report, render=_render, quiet=lambda report: report.verdict[0])
    if report.model is None:
        context.output.hint("look at a model with `reviver doctor MODEL --facts FILE`")
    elif report.model.advice.fit is None:
        context.output.hint("try facts with `--facts FILE`")
    elif report.model.advice.fit:
        from reviver.verbs.doctor import span

        context.output.hint(
            f"prepare it with `reviver init MODEL --layers {span(report.model.advice.layers)}`; "
            "λ is `weight` under [moments] in `reviver.toml`"
        )


def _render(console: Console, report: DoctorReport) -> None:
    if report.model is None:
        _render_machine(console, report.machine)
    else:
        _render_model(console, report.model)
    for line in report.verdict:
        console.print(line)


def _render_machine(console: Console, machine: MachineReport) -> None:
    console.print(f"system      {printable(machine.system)}, Python {machine.python}")
    console.print(f"processors  {machine.processors}, torch computes with {plural(machine.threads, 'thread')}")
    memory = "unknown" if machine.memory is None else human_bytes(machine.memory)
    free = "" if machine.memory_free is None else f", {human_bytes(machine.memory_free)} free"
    console.print(f"memory      {memory}{free}")
    console.print(f"disk        {human_bytes(machine.disk_free)} free")
    for device in machine.devices:
        size = "" if device.memory is None else f", {human_bytes(device.memory)}"
        console.print(f"device      {device.kind}: {printable(device.name, 80)}{size}")
    versions = (f"{name} {found or 'not installed'}" for name, found in machine.libraries.items())
    console.print(f"libraries   {', '.join(versions)}")
    console.print(f"Hub         {'switched off (offline mode)' if machine.offline else 'in use'}")


def _render_model(console: Console, model: ModelReport) -> None:
    from reviver.cli.output import make_table

    console.print(
        f"{printable(model.model, 100)}: {model.family}, {plural(model.depth, 'block')}; {model.tokens:,} tokens read, "
        f"{plural(model.subjects, 'subject')}, {plural(model.facts, 'fact')} tried"
    )
    headers = ("block", "MLP writes", "key cosine", "closest", "in reach", "λ", "arrives", "leaks", "update")
    table = make_table("", *headers, right=headers)
    for block in model.blocks:
        weight = model.advice.weight
        place = next((index for index, one in enumerate(block.responses) if one.weight == weight), None)
        response = None if place is None else block.responses[place]
        norm = None if place is None or block.update_norms is None else block.update_norms[place]
        table.add_row(
            "+" if block.layer in model.advice.layers else "-",
            str(block.layer),
            f"{block.write_share:.2f}",
            _number(block.key_cosine),
            _number(block.closest_keys),
            "" if block.reachable is None else f"{block.reachable:.0%}",
            "" if weight is None else f"{weight:g}",
            "" if response is None else f"{response.own:.1%}",
            "" if response is None else f"{response.leak:.1%}",
            _number(norm),
        )
    console.print(table)
    if model.advice.responses:
        grid = make_table("λ", "arrives", "leaks", right=("λ", "arrives", "leaks"))
        for one in model.advice.responses:
            grid.add_row(f"{one.weight:g}", f"{one.own:.1%}", f"{one.leak:.2%}")
        console.print(grid)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
