"""Arguments and options that several commands share, so that they are spelled and explained alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reviver.history.untrusted import MAXIMUM_TEXT
from reviver.settings import describe, variable_name


def setting_option(name: str, *spellings: str, metavar: str) -> Any:
    """Return the option that sets `section.key` for one run.

    Its help is the first sentence of the setting's description. It has no default of its own: what is not given on the
    command line is looked up in the environment, in `reviver.toml` and in the preset, in this order. Give the value to
    `Context.settings`, which checks it.
    """
    sentence = describe(name).partition(". ")[0].rstrip(".")
    return typer.Option(
        *spellings, metavar=metavar, help=f"{sentence}. [env var: {variable_name(name)}]", show_default=False
    )


FactsArgument = Annotated[
    Path, typer.Argument(metavar="FACTS", help="A file of facts: JSONL, JSON or CSV; `-` is stdin.", show_default=False)
]

RankOption = Annotated[int | None, setting_option("apply.rank", "--rank", metavar="K")]
EnergyOption = Annotated[float | None, setting_option("apply.energy", "--energy", metavar="T")]
FilterOption = Annotated[str | None, setting_option("apply.filter", "--filter", metavar="NAME")]
EditorOption = Annotated[str | None, setting_option("apply.editor", "--editor", metavar="NAME")]
RoundSizeOption = Annotated[int | None, setting_option("apply.round_size", "--round-size", metavar="N")]
DeviceOption = Annotated[str | None, setting_option("apply.device", "--device", metavar="NAME")]
DtypeOption = Annotated[str | None, setting_option("apply.dtype", "--dtype", metavar="NAME")]
OffloadOption = Annotated[str | None, setting_option("apply.offload", "--offload", metavar="WHEN")]
LinkModeOption = Annotated[str | None, setting_option("apply.link_mode", "--link-mode", metavar="MODE")]
LayersOption = Annotated[str | None, setting_option("model.layers", "--layers", metavar="SPAN")]
CorpusOption = Annotated[str | None, setting_option("moments.corpus", "--corpus", metavar="FILE")]


def _usable_message(text: str) -> str:
    """Refuse now what no manifest could hold, before there is any work to be lost."""
    if len(text) > MAXIMUM_TEXT:
        raise typer.BadParameter(f"it has {len(text):,} characters, and a message may have {MAXIMUM_TEXT:,}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not text in UTF-8") from None
    return text


MessageOption = Annotated[
    str,
    typer.Option(
        "-m",
        "--message",
        metavar="TEXT",
        help="What the version is for.",
        show_default=False,
        callback=_usable_message,
    ),
]
NoCheckpointOption = Annotated[
    bool, typer.Option("--no-checkpoint", help="Make the patch only; `checkout` writes the rest.", show_default=False)
]
NoMeasureOption = Annotated[
    bool, typer.Option("--no-measure", help="Load no model and ask it about no fact.", show_default=False)
]
