"""What a person should know of a workspace that `init` has prepared."""

from __future__ import annotations

from collections.abc import Iterator

from reviver.editing.base import model_preset
from reviver.editing.corpus import Corpus
from reviver.editing.preparation import Preparation
from reviver.settings import Settings
from reviver.text import plural, printable


def doubts(preparation: Preparation, corpus: Corpus, settings: Settings) -> Iterator[str]:
    """Say what was guessed, what stayed as it was although something else was asked for, and what versions go without.

    Args:
        preparation: of the workspace, with all that `init` computes.
        corpus: the ordinary text that the settings name.
        settings: of this run.
    """
    yield from _guesses(preparation, settings)
    wanted = settings.moments.corpus
    others = [] if wanted is None else preparation.moments_of_other_text(corpus)
    if others:
        yield (
            f"{plural(len(others), 'second moment')} stayed, though of other text than `{printable(str(wanted), 200)}`: "
            "delete `.reviver/statistics` and repeat the command to have them of this one"
        )
    if preparation.folder.left_out:
        yield f"versions will not carry {printable(', '.join(preparation.folder.left_out), 200)}"


def _guesses(preparation: Preparation, settings: Settings) -> Iterator[str]:
    """Say what was neither given, now or earlier, nor published for this model."""
    pin = preparation.pin
    preset = model_preset(pin, preparation.folder)
    guessed = []
    if settings.model.layers is None and pin.layers == preset.layers:
        guessed.append(f"block{'s' * (len(pin.layers) > 1)} {', '.join(str(layer) for layer in pin.layers)}")
    if settings.moments.weight is None:
        guessed.append(f"λ = {preset.moment_weight:g}")
    if preset.derived and guessed:
        several = len(guessed) > 1 or guessed[0].startswith("blocks")
        yield (
            f"no published preset fits `{printable(pin.model, 80)}`: {' and '.join(guessed)} "
            f"{'follow' if several else 'follows'} from its size alone; `reviver doctor --facts FACTS` measures what suits it"
        )
