"""`reviver init`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import CorpusOption, DeviceOption, DtypeOption, LayersOption, OffloadOption
from reviver.cli.output import make_table
from reviver.settings import variable_name
from reviver.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.verbs.init import InitReport


@verb
def init(
    context: Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL[@REVISION]", help="A local folder or a Hub id.", show_default=False)
    ],
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The workspace to make; `-C` by default.", show_default=False)
    ] = None,
    layers: LayersOption = None,
    corpus: CorpusOption = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="K",
            help="Make the spectral bases wide enough for this protected rank, which `apply --rank K` or `reviver.toml` "
            f"chooses. [env var: {variable_name('apply.rank')}]",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: OffloadOption = None,
) -> None:
    """Pin a base model and prepare it to be edited."""
    if directory is not None:
        context = replace(context, directory=directory)
        context.output.directory = directory
    settings = context.settings(
        model_layers=layers,
        moments_corpus=corpus,
        apply_rank=rank,
        apply_device=device,
        apply_dtype=dtype,
        apply_offload=offload,
    )
    from reviver.editing.following import with_all_ranks
    from reviver.verbs.init import init as run_init

    report = with_all_ranks(
        settings,
        lambda processes: run_init(
            context.directory, model, settings=settings, progress=context.output.progress(), processes=processes
        ),
    )
    if report is None:
        return
    context.output.result(report, render=render_init, quiet=lambda report: report.fingerprint)
    context.output.hint("write facts into the model with `reviver apply FACTS`")


def render_init(console: Console, report: InitReport) -> None:
    """Draw what was pinned and prepared."""
    revision = f" at {report.revision[:12]}" if report.revision else ""
    did = ", ".join(report.did) if report.did else "everything was there already"
    console.print(f"{printable(report.model)}{revision}: {did}")
    console.print(
        f"family {report.family}, preset {report.preset}, default protected rank {report.protected_rank}, "
        f"fingerprint {report.fingerprint[:12]}"
    )
    table = make_table("block", "tensor", "shard", "dtype", "shape", "basis", right=("block", "basis"))
    for tensor in report.tensors:
        table.add_row(
            str(tensor.layer),
            tensor.name,
            tensor.shard,
            tensor.dtype,
            "×".join(map(str, tensor.shape)),
            str(tensor.basis_width),
        )
    console.print(table)
