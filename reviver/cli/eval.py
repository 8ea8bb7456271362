"""reviver eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reviver.cli.command import Context, verb
from reviver.cli.options import DeviceOption, DtypeOption
from reviver.text import plural, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from reviver.verbs.eval import EvalReport


@verb
def eval_(
    context: Context,
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="A version, as in `show`; `base` measures the base.")
    ] = "head",
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="counterfact, zsre, fluency, perplexity, pairs, drift or lm-eval; may be given again. Without it, all "
            "that have what they need, but zsre.",
            show_default=False,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option("--facts", metavar="FILE", help="Measure these facts, not the version's own.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text or JSONL to measure perplexity on. Without it, the base writes its own.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs", metavar="FILE", help="Minimal pairs: JSONL with `good`, `bad`, `paradigm`.", show_default=False
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="A task of lm-eval; may be given again.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="At most N examples of each task.", min=1, show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The seed of the generations.", min=0)] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure a version: facts, fluency, perplexity, drift."""
    settings = context.settings(apply_device=device, apply_dtype=dtype)
    from reviver.verbs.eval import EvalRequest, evaluate

    request = EvalRequest(
        suites=tuple(suite or ()),
        facts=facts,
        text=text,
        pairs=pairs,
        tasks=tuple(task or ()),
        limit=limit,
        seed=seed,
    )
    report = evaluate(context.directory, version, request, settings=settings, progress=context.output.progress())
    context.output.result(report, render=_render, quiet=lambda report: report.version)


# In the order in which they are read: what an edit shall do, what it shall leave alone, and both together.
_SHOWN = {
    "counterfact": (
        ("efficacy", "paraphrase", "neighbors_kept", "neighbor_accuracy"),
        ("es", "ps", "ns", "s"),
        ("efficacy_magnitude", "paraphrase_magnitude", "neighbor_magnitude"),
    ),
    "zsre": (("rewrite", "rephrase", "locality"),),
    "fluency": (("fluency", "bigram_entropy", "trigram_entropy"),),
    "perplexity": (("perplexity",),),
    "pairs": (("accuracy",),),
    "drift": (("subspace_similarity", "vector_similarity", "norm_growth"),),
}
# Told as plain numbers; the others are shares.
_NUMBERS = frozenset(
    ("fluency", "bigram_entropy", "trigram_entropy", "perplexity", "subspace_similarity", "vector_similarity",
     "norm_growth", "efficacy_magnitude", "paraphrase_magnitude", "neighbor_magnitude")
)  # fmt: skip
_COUNTED = {
    "counterfact": (("facts", "fact"), ("paraphrases", "paraphrase"), ("neighbors", "neighbour")),
    "zsre": (("facts", "fact"), ("rephrases", "rephrase"), ("localities", "neighbour")),
    "fluency": (("texts", "text"),),
    "perplexity": (("tokens", "token"),),
    "pairs": (("pairs", "pair"),),
}


def _render(console: Console, report: EvalReport) -> None:
    console.print(f"{report.version} {report.id[:12]}")
    for result in report.suites:
        counted = _COUNTED.get(result.suite, ())
        counts = ", ".join(plural(result.metrics[key], noun) for key, noun in counted)  # type: ignore[arg-type]
        console.print(f"\n{result.suite}{': ' if counts else ''}{counts}")
        for names in _SHOWN.get(result.suite, ()):
            console.print("  " + ", ".join(f"{_label(name)} {_value(name, result.metrics[name])}" for name in names))
        draw = _GROUPS.get(result.suite)
        if draw is not None:
            draw(console, result.metrics)


def _label(name: str) -> str:
    return name.upper() if len(name) <= 2 else name.replace("_", " ").replace("neighbor", "neighbour")


def _value(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if name in _NUMBERS else f"{value:.1%}"


def _render_ages(console: Console, metrics: Mapping[str, Any]) -> None:
    from reviver.cli.output import make_table

    for key, heading in (("ages", "version"), ("blocks", "block")):
        groups = metrics.get(key) or []
        # One version's own facts are the table above; blocks add nothing to versions of one fact each.
        if len(groups) < 2:
            continue
        table = make_table(f"  {heading}", "facts", "efficacy", "ES", right=("facts", "efficacy", "ES"))
        for group in groups:
            table.add_row(
                f"  {group['name']}",
                f"{group['first']:,}-{group['last']:,}",
                f"{group['efficacy']:.1%}",
                _value("es", group["es"]),
            )
        console.print(table)


def _render_paradigms(console: Console, metrics: Mapping[str, Any]) -> None:
    from reviver.cli.output import make_table

    if len(metrics["paradigms"]) > 1:
        table = make_table("  paradigm", "accuracy", right=("accuracy",))
        for name, share in sorted(metrics["paradigms"].items(), key=lambda one: one[1]):
            table.add_row(f"  {printable(name, 60)}", f"{share:.1%}")
        console.print(table)


def _render_tensors(console: Console, metrics: Mapping[str, Any]) -> None:
    from reviver.cli.output import make_table

    headers = ("k", "subspace left", "right", "norm growth")
    table = make_table("  tensor", *headers, right=headers)
    for tensor in metrics["tensors"]:
        table.add_row(
            f"  {printable(tensor['name'], 80)}",
            str(tensor["rank"]),
            f"{tensor['subspace_left']:.3f}",
            f"{tensor['subspace_right']:.3f}",
            f"{tensor['norm_growth']:.3f}",
        )
    console.print(table)


def _render_tasks(console: Console, metrics: Mapping[str, Any]) -> None:
    for name, found in metrics["tasks"].items():
        shown = ", ".join(f"{printable(key, 40)} {value:.4g}" for key, value in found.items())
        console.print(f"  {printable(name, 60)}: {shown}")


_GROUPS = {
    "counterfact": _render_ages,
    "pairs": _render_paradigms,
    "drift": _render_tensors,
    "lm-eval": _render_tasks,
}
