"""Editing hyperparameters by model: published presets, and a derived one, marked as such, for every other model.

Sources: the hyperparameter files of MEMIT (arXiv 2210.07229) and AlphaEdit (arXiv 2410.02355), as the papers report them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from reviver.editing.architecture import Shape, model_shape, text_config

if TYPE_CHECKING:
    from reviver.editing.editors import Editor


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What locating and editing need to know about one model.

    Attributes:
        name: how the preset is called in manifests.
        layers: the edited blocks, ascending; the targets are sought at the output of the last one.
        steps: gradient steps for a target at most.
        learning_rate: of Adam on the shift.
        clamp: the shift's norm at most, relative to the norm of the hidden state.
        weight_decay: weight of the shift's norm in the loss.
        kl: weight of the divergence at the subject's last token.
        moment_weight: λ, the weight of the second moment.
        rank: the protected rank of the filter.
        editors: settings of single editors, where this model needs others than the editor's own defaults.
        derived: whether the values come from a rule of thumb instead of a publication.
    """

    name: str
    layers: tuple[int, ...]
    steps: int = 25
    learning_rate: float = 0.5
    clamp: float = 0.75
    weight_decay: float = 0.5
    kl: float = 0.0625
    moment_weight: float = 15000.0
    rank: int = 64
    editors: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    derived: bool = False

    def editor_settings(self, editor: Editor, given: Mapping[str, object]) -> object:
        """Return an editor's settings for this model: its own, and over them what is given.

        Raises:
            SettingsError: one is unknown or wrong.
        """
        return editor.settings({**self.editors.get(editor.name, {}), **given})


def _span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


# Where AlphaEdit's authors cut the spectrum of the second moment of every model of theirs.
_ALPHAEDIT = {"threshold": 2e-2}


@dataclass(frozen=True, slots=True)
class _Size:
    """What tells a model from others of its architecture.

    Attributes:
        model_type: the architecture, as `config.json` calls it.
        layers, hidden, inner: blocks, hidden width, width of the MLP.
        vocabulary: tokens at least; who trains a model further may add some.
    """

    model_type: str
    layers: int
    hidden: int
    inner: int
    vocabulary: int = 0


_PUBLISHED: Mapping[_Size, Preset] = {
    _Size("gpt2", 48, 1600, 6400): Preset(
        name="gpt2-xl",
        layers=_span(13, 17),
        steps=20,
        moment_weight=20000.0,
        rank=25,
        editors={"alphaedit": _ALPHAEDIT},
    ),
    _Size("gptj", 28, 4096, 16384): Preset(
        name="gpt-j-6b",
        layers=_span(3, 8),
        editors={"alphaedit": _ALPHAEDIT, "nse": {"alpha": 15.0, "upper": 100.0}},
    ),
    # Llama 1 and 2 have as many blocks of the same width; a Mistral in Llama's form has the same MLP too.
    _Size("llama", 32, 4096, 14336, vocabulary=128256): Preset(
        name="llama-3-8b", layers=_span(4, 8), learning_rate=0.1, editors={"alphaedit": _ALPHAEDIT}
    ),
    _Size("qwen2", 28, 3584, 18944): Preset(name="qwen2.5-7b", layers=_span(4, 8), rank=56),
    _Size("mistral", 32, 4096, 14336): Preset(name="mistral-7b", layers=_span(4, 8), clamp=4.0, weight_decay=1e-3),
    # The model of the demonstration; measured by its own recipe's facts.
    _Size("llama", 8, 192, 1024): Preset(
        name="demo",
        layers=_span(2, 4),
        moment_weight=100.0,
        rank=8,
        editors={
            "alphaedit": {"l2": 1.0},
            "nse": {"alpha": 10.0, "upper": 1000.0},
            "ultraedit": {"rate": 1e-3},
        },
    ),
}


def find_preset(config: Mapping[str, object], inner_width: int) -> Preset:
    """Return the published preset of a model, or one derived from its size.

    Args:
        config: the parsed `config.json`.
        inner_width: `I`, the width of the MLP.
    """
    shape = model_shape(config)
    vocabulary = text_config(config).get("vocab_size")
    known = vocabulary if isinstance(vocabulary, int) else 0
    own = (str(config.get("model_type")), shape.layers, shape.hidden, inner_width)
    for size, preset in _PUBLISHED.items():
        if own == (size.model_type, size.layers, size.hidden, size.inner) and known >= size.vocabulary:
            return preset
    return derive_preset(shape, inner_width)


def derive_preset(shape: Shape, inner_width: int) -> Preset:
    """Return a preset from the size of a model alone.

    The published presets edit blocks between 1/8 and 1/3 of the depth; λ is about the width of the MLP in all of them, since a
    whitened key has a squared norm of that order; and a protected rank of 1/64 of the hidden width is 64 for an 8B model.
    """
    first = max(1, round(shape.layers * 0.15)) if shape.layers > 2 else 0
    count = min(5, max(1, round(shape.layers * 0.3)))
    last = min(shape.layers - 1, first + count - 1)
    return Preset(
        name="derived",
        layers=_span(min(first, last), last),
        moment_weight=float(inner_width),
        rank=max(1, shape.hidden // 64),
        derived=True,
    )


def with_layers(preset: Preset, layers: tuple[int, ...] | None) -> Preset:
    """Return the preset with other edited blocks, if some are given."""
    return preset if layers is None else replace(preset, layers=layers)
