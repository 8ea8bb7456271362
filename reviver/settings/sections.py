"""The sections of `reviver.toml`: each setting with its default, its range and the reason for it, in the file's order.

A setting whose default is None takes its value from the model's preset, because it depends on the model. What an editor can be
told stands under `[editors.NAME]`, and is checked by the editor itself, which may be somebody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

VARIABLE_PREFIX = "REVIVER_"
EDITORS = "editors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a text must look like, as a pattern for the program and in words for a person."""

    pattern: re.Pattern[str]
    words: str


_MODULE_PATH = Form(pattern=re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII), words="a module path such as `model.layers`")
_DEVICE = Form(
    pattern=re.compile(r"auto|cpu|cuda(:\d{1,4})?", re.ASCII),
    words="`auto`, `cpu`, `cuda` or `cuda:1`",
)


def _setting(
    default: object,
    description: str,
    *,
    example: object = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    form: Form | None = None,
) -> Any:
    """Return a dataclass field that knows its description and range; `example` is shown where there is no default."""
    return field(
        default=default,
        metadata={
            "description": description,
            "example": default if example is None else example,
            "bounds": (least, above, most, below),
            "choices": choices,
            "form": form,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplySection:
    """`[apply]`: how facts become a version."""

    editor: str = _setting(
        "memit",
        "The editor that solves for the update: `memit`, `rect`, `prune`, `alphaedit`, `nse`, `ultraedit`, or one that "
        "another package brings.",
    )
    filter: str = _setting(
        "revive",
        "What keeps the update away from the base's dominant directions: `none` lets everything pass, `revive` removes "
        "what lies there after the solve, `constrained` seeks and solves outside of them from the start.",
        choices=("none", "revive", "constrained"),
    )
    rank: int | None = _setting(
        None,
        "The protected rank k: how many dominant directions on either side of a matrix no edit may touch. It is the "
        "model's preset unless it or `energy` is given; they exclude each other.",
        example=64,
        least=1,
        most=10**6,
    )
    energy: float | None = _setting(
        None,
        "The share of a matrix's squared singular values that the protected directions hold together, as another way "
        "to choose k.",
        example=0.5,
        above=0,
        below=1,
    )
    round_size: int = _setting(
        100,
        "How many facts are solved for together. Larger rounds are faster; smaller ones need less memory.",
        least=1,
        most=100_000,
    )
    device: str = _setting(
        "auto",
        "Where to compute: `auto` takes a GPU if there is one. Others are `cpu`, `cuda` and `cuda:1`.",
        form=_DEVICE,
    )
    dtype: str = _setting(
        "auto",
        "In which precision the model runs: `auto` is what the device does well. The bytes of a version are exact "
        "whatever is chosen.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    offload: str = _setting(
        "auto",
        "Which blocks lie in main memory or on disk and come to the device when they run: `auto` those that do not fit "
        "there, `always` all that are not edited. It is slow, and `always` leaves the device the most room. Needs the "
        "extra `offload`.",
        choices=("auto", "always"),
    )
    keep_checkpoints: int | None = _setting(
        None,
        "How many of the newest versions keep their checkpoint on disk. All do if this is not set; any checkpoint can "
        "be written again with `reviver checkout`.",
        example=3,
        least=1,
        most=10**6,
    )
    link_mode: str = _setting(
        "auto",
        "How a checkpoint gets the base's unchanged shards: `auto` takes the first of `reflink`, `hardlink`, `symlink` "
        "and `copy` that the disk allows.",
        choices=("auto", "reflink", "hardlink", "symlink", "copy"),
    )
    minimum_captured_fraction: float = _setting(
        0.5,
        "Warn if less of an update than this survives the rounding to the stored precision, because a small edit can "
        "vanish in bfloat16.",
        least=0,
        most=1,
    )
    maximum_relative_norm: float = _setting(
        10.0,
        "Refuse what moves a matrix, all versions together, by more than this many times its norm, because nothing of "
        "what the model knew would be left.",
        above=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsSection:
    """`[targets]`: the search for the hidden state that says the new fact."""

    steps: int | None = _setting(None, "Gradient steps for one fact at most.", example=25, least=1, most=10_000)
    learning_rate: float | None = _setting(None, "The step size of Adam.", example=0.5, above=0)
    clamp: float | None = _setting(
        None, "The largest shift, relative to the norm of the hidden state it starts from.", example=0.75, above=0
    )
    weight_decay: float | None = _setting(
        None, "The weight of the shift's size in the loss, which keeps it short.", example=0.5, least=0
    )
    kl: float | None = _setting(
        None, "The weight of the divergence that keeps what the subject is.", example=0.0625, least=0
    )
    stop_loss: float = _setting(0.05, "A fact is done when its loss falls below this.", above=0)
    prefixes: int = _setting(
        5,
        "How many texts written by the model itself stand before each prompt in turn, so that the fact holds in any "
        "context.",
        least=0,
        most=100,
    )
    prefix_length: int = _setting(10, "The length of these texts in tokens.", least=1, most=1000)
    seed: int = _setting(0, "The seed of these texts. It is recorded with every version.", least=0, most=2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentsSection:
    """`[moments]`: the second moments of the keys, which `reviver init` computes once."""

    corpus: str | None = _setting(
        None,
        "The ordinary text behind the second moments: a file of text or JSONL, or the id of a data set (with the "
        "extra `corpus`). Without one the model writes its own.",
        example="corpus.txt",
    )
    tokens: int | None = _setting(
        None,
        "How many tokens to read. Ten times the width of the MLP are enough, and the default.",
        example=100_000,
        least=1,
        most=10**12,
    )
    length: int = _setting(512, "The longest text in tokens; longer ones are cut.", least=2, most=1_000_000)
    seed: int = _setting(
        0, "The seed of the model's own text, or of the draw from the corpus.", least=0, most=2**63 - 1
    )
    weight: float | None = _setting(
        None,
        "λ, the weight of the second moment in the solve: how much an edit may disturb ordinary text. Larger values "
        "edit less.",
        example=15000.0,
        above=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """`[model]`: where the edited matrices are, for an architecture that is not known or for other blocks."""

    blocks: str | None = _setting(
        None,
        "The module path of the list of decoder blocks, for an architecture that reviver does not know.",
        example="model.layers",
        form=_MODULE_PATH,
    )
    matrix: str | None = _setting(
        None,
        "The path within a block of the MLP's second matrix. `blocks` and `matrix` belong together.",
        example="mlp.down_proj",
        form=_MODULE_PATH,
    )
    layers: tuple[int, ...] | None = _setting(
        None, "The blocks to edit, counted from 0, as a list or a span such as `4-8`.", example=[4, 5, 6, 7, 8]
    )


SECTIONS: Mapping[str, type] = {
    "apply": ApplySection,
    "targets": TargetsSection,
    "moments": MomentsSection,
    "model": ModelSection,
}


def variable_name(name: str) -> str:
    """Return the environment variable of `section.key`: `apply.rank` is `REVIVER_APPLY_RANK`."""
    return VARIABLE_PREFIX + name.replace(".", "_").upper()


def describe(name: str) -> str:
    """Return what `section.key` means, in full sentences."""
    return str(find_field(name)[1].metadata["description"])


def all_fields() -> Iterator[tuple[str, Field[Any]]]:
    """Yield every setting with its section, in the file's order."""
    for section, kind in SECTIONS.items():
        for key in fields(kind):
            yield section, key


def find_field(name: str) -> tuple[str, Field[Any]]:
    """Return the section and the field of `section.key`, or raise KeyError."""
    section, _, key = name.partition(".")
    for found in fields(SECTIONS[section]) if section in SECTIONS else ():
        if found.name == key:
            return section, found
    raise KeyError(f"there is no setting `{name}`")
