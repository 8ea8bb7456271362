"""Where a model keeps the matrices that are edited: the second matrix of the MLP, block by block.

A family says how its decoder blocks and that matrix are called. Names in memory and names on disk differ between releases
of transformers, so both are found from the same suffix, and an edited tensor is always named as it is on disk in the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reviver.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The names that one architecture uses.

    Attributes:
        name: `model_type` of the configuration.
        blocks: name of the list of decoder blocks, the last part of its module path.
        matrix: path of the edited matrix within a block.
        transposed: the matrix is stored `[I, O]` (GPT-2's Conv1D) instead of `[O, I]`.
        post_norm: path within a block of a norm between the matrix and the residual stream, if the architecture has one.
    """

    name: str
    blocks: str
    matrix: str
    transposed: bool = False
    post_norm: str | None = None

    def suffix(self, layer: int) -> str:
        """Return the end of the name of the edited weight of block `layer`, the same in memory and on disk."""
        return f"{self.blocks}.{layer}.{self.matrix}.weight"


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        *(
            Family(name=name, blocks="layers", matrix="mlp.down_proj")
            for name in ("llama", "mistral", "qwen2", "qwen3", "phi3")
        ),
        *(
            Family(name=name, blocks="layers", matrix="mlp.down_proj", post_norm="post_feedforward_layernorm")
            for name in ("gemma2", "gemma3_text", "gemma3", "olmo2")
        ),
        Family(name="gpt2", blocks="h", matrix="mlp.c_proj", transposed=True),
        Family(name="gptj", blocks="h", matrix="mlp.fc_out"),
        Family(name="gpt_neox", blocks="layers", matrix="mlp.dense_4h_to_h"),
        Family(name="opt", blocks="layers", matrix="fc2"),
    )
}
"""The architectures that are known, by `model_type`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the configuration says about the size of a model: number of blocks, hidden width."""

    layers: int
    hidden: int


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the part of a configuration that describes the language model (multimodal models nest it)."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def model_shape(config: Mapping[str, object]) -> Shape:
    """Return the size of a model from its `config.json`.

    Raises:
        UnsupportedModelError: the configuration does not say how many blocks there are or how wide they are.
    """
    inner = text_config(config)
    layers = next((inner[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in inner), None)
    hidden = next((inner[key] for key in ("hidden_size", "n_embd", "d_model") if key in inner), None)
    if not isinstance(layers, int) or not isinstance(hidden, int) or layers < 1 or hidden < 1:
        raise UnsupportedModelError(
            "`config.json` does not say how many decoder blocks the model has or how wide they are",
            hint="reviver edits decoder-only language models; check that this is the folder of one",
        )
    return Shape(layers=layers, hidden=hidden)


def inner_side(shape: Iterable[int], hidden: int) -> int:
    """Return the MLP's width from the shape of its second matrix, whose other side is the hidden width."""
    return next((side for side in reversed(tuple(shape)) if side != hidden), hidden)


def find_family(
    config: Mapping[str, object], *, blocks: str | None = None, matrix: str | None = None, transposed: bool = False
) -> Family:
    """Return the family of a model, or one made of the module paths that `reviver.toml` gives.

    Args:
        config: the parsed `config.json`.
        blocks: module path of the list of decoder blocks, such as `model.layers`, for an architecture not known here.
        matrix: path of the edited matrix within a block, such as `mlp.down_proj`.
        transposed: whether that matrix is stored input first.

    Raises:
        UnsupportedModelError: the architecture is not known and the two paths are not both given, or it keeps its MLPs in
            experts.
    """
    name = str(config.get("model_type", "unknown"))
    if blocks is not None and matrix is not None:
        return Family(name=name, blocks=blocks, matrix=matrix, transposed=transposed)
    inner = text_config(config)
    if any(key in inner for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UnsupportedModelError(
            f"`{name}` keeps its MLPs in experts, which reviver does not edit",
            hint="choose a dense model",
            model_type=name,
        )
    family = FAMILIES.get(name) or FAMILIES.get(str(inner.get("model_type")))
    if family is None:
        raise UnsupportedModelError(
            f"the architecture `{name}` is not known",
            hint="name its decoder blocks and the MLP's second matrix as `blocks` and `matrix` under [model] in `reviver.toml`",
            model_type=name,
            known=sorted(FAMILIES),
        )
    return family


def disk_name(family: Family, layer: int, names: Iterable[str]) -> str:
    """Return the name on disk of the edited weight of block `layer`.

    Raises:
        UnsupportedModelError: no tensor, or more than one, has this place in the model.
    """
    suffix = family.suffix(layer)
    # A vision tower of a multimodal model has blocks of its own; only the language model's are edited.
    found = [
        name
        for name in names
        if (name == suffix or name.endswith("." + suffix)) and not re.search(r"(^|\.)(vision|audio)", name)
    ]
    if len(found) != 1:
        what = "is missing" if not found else f"matches {len(found)} tensors"
        raise UnsupportedModelError(
            f"the edited matrix `{suffix}` {what} in the checkpoint",
            hint="name `blocks` and `matrix` under [model] in `reviver.toml`, or choose other blocks with `--layers`",
            suffix=suffix,
            found=found,
        )
    return found[0]
