"""How the numbers of `eval`'s suites are told, by the commands that show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reviver.text import plural, printable

if TYPE_CHECKING:
    from rich.console import Console

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


def render_numbers(console: Console, suite: str, metrics: Mapping[str, Any], *, when: str = "") -> None:
    """Draw the single numbers of one suite, below its name and what it counted.

    Args:
        suite: its name; one that is not known here is told without its numbers.
        metrics: what it measured; a number that is missing or None is told as such.
        when: told behind the name.
    """
    counted = [(metrics[key], noun) for key, noun in _COUNTED.get(suite, ()) if key in metrics]
    counts = ", ".join(plural(count, noun) for count, noun in counted)
    console.print(f"{printable(suite, 40)}{when}{': ' if counts else ''}{counts}")
    for names in _SHOWN.get(suite, ()):
        console.print("  " + ", ".join(f"{_label(name)} {told(name, metrics.get(name))}" for name in names))


def _label(name: str) -> str:
    return name.upper() if len(name) <= 2 else name.replace("_", " ").replace("neighbor", "neighbour")


def told(name: str, value: Any) -> str:
    """Return the value of a measure as it is read: a share in per cent, another number plainly."""
    if value is None:
        return "-"
    return f"{value:.4g}" if name in _NUMBERS else f"{value:.1%}"
