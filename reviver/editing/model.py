"""A language model in memory whose edited matrices can be read and replaced by their names on disk.

Legend: O output features of the edited matrix (hidden width), I input features (MLP width); D0, D1 the axes as on disk.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reviver.editing.architecture import Family
from reviver.editing.placement import WHOLE, Placement, device_map, put_away, quiet_accelerate, return_freed_memory
from reviver.editing.ranks import ALONE, Ranks
from reviver.editing.tokens import check_tokenizer
from reviver.errors import ResourceError, UnsupportedModelError, UsageError
from reviver.text import printable

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Torch's dtype for each dtype of a safetensors header that can be edited."""

COMPUTE_DTYPES: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
"""What `--dtype` may say."""


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` names; `auto` is the GPU where there is one.

    Raises:
        UsageError: torch does not know such a device.
        ResourceError: this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"`{name}` is not a device", hint="use `--device cpu`, `cuda` or `cuda:1`") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ResourceError(
            f"the device `{name}` is not there; this machine has {torch.cuda.device_count()} GPUs",
            hint="use `--device cpu`, or leave `--device` out",
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"the device `{name}` is not supported", hint="use `--device cpu` or `--device cuda`")
    return device


def choose_dtype(name: str, device: torch.device, stored: str) -> torch.dtype:
    """Return the dtype to compute in; `auto` is float32 on the CPU and, on a GPU, the dtype that the base is stored in."""
    if name != "auto":
        if name not in COMPUTE_DTYPES:
            raise UsageError(f"`{name}` is not a dtype to compute in", hint=f"use one of {', '.join(COMPUTE_DTYPES)}")
        return COMPUTE_DTYPES[name]
    return torch.float32 if device.type == "cpu" else TORCH_DTYPES.get(stored, torch.float32)


@dataclass(slots=True, kw_only=True)
class EditableModel:
    """A causal language model, its tokenizer, and its edited matrices.

    Attributes:
        network: the model of transformers, in evaluation mode, no parameter asking for gradients.
        tokenizer: its fast tokenizer.
        family: how the architecture names its parts.
        layers: the edited blocks, ascending.
        names: name on disk of the edited tensor of each of these blocks.
        device: where inputs go, and where everything is computed.
        placement: the blocks that do not lie there.
        blocks_return_tuples: whether a block returns its hidden states in a tuple, as all did before transformers 4.56.
        ranks: the processes of this run, each of which holds the model.
    """

    network: Any
    tokenizer: Any
    family: Family
    layers: tuple[int, ...]
    names: Mapping[int, str]
    device: torch.device
    placement: Placement = WHOLE
    blocks_return_tuples: bool = False
    ranks: Ranks = ALONE
    _blocks: nn.ModuleList | None = field(default=None, init=False, repr=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        if self._blocks is None:
            self._blocks = _find_blocks(self.network, self.family)
        return self._blocks

    @property
    def window(self) -> int:
        """The number of tokens that the model can read at most."""
        config = self.network.config
        inner = getattr(config, "text_config", config)
        return int(getattr(inner, "max_position_embeddings", None) or getattr(inner, "n_positions", None) or 2048)

    def matrix(self, layer: int) -> nn.Module:
        """Return the module that holds the edited matrix of block `layer`."""
        return self.blocks[layer].get_submodule(self.family.matrix)

    def post_norm(self, layer: int) -> nn.Module | None:
        """Return the norm between the edited matrix and the residual stream, if the architecture has one."""
        return None if self.family.post_norm is None else self.blocks[layer].get_submodule(self.family.post_norm)

    def weight(self, layer: int) -> Tensor:
        """Return the edited weight of block `layer`, as it lies in memory, `[D0, D1]` like on disk."""
        weight = self.matrix(layer).weight
        assert isinstance(weight, Tensor)
        return weight

    def inner_width(self, layer: int) -> int:
        """Return `I`, the number of input features of the edited weight of block `layer`."""
        return int(self.weight(layer).shape[0 if self.family.transposed else 1])

    def outer_width(self, layer: int) -> int:
        """Return `O`, the number of output features of the edited weight of block `layer`: the width of the residual stream."""
        return int(self.weight(layer).shape[1 if self.family.transposed else 0])

    def put_weight(self, layer: int, weight_DE: Tensor) -> None:
        """Replace the edited weight of block `layer` by values in any dtype, `[D0, D1]`, on every rank."""
        self.ranks.tell("weight", layer=layer)
        with torch.no_grad():
            self.ranks.spread(self.weight(layer).copy_(weight_DE))

    def put_tensor(self, name: str, weight_DE: Tensor) -> None:
        """Replace the parameter that the tensor `name` on disk became, edited matrix or not, by values in any dtype, `[D0, D1]`.

        Raises:
            UnsupportedModelError: no parameter, or more than one, has this name and shape.
        """
        # Some checkpoints leave the first part of a name out, some architectures add one.
        found = [
            (own, parameter)
            for own, parameter in self.network.named_parameters()
            if (own == name or own.endswith("." + name) or name.endswith("." + own))
            and parameter.shape == weight_DE.shape
        ]
        if len(found) != 1:
            raise UnsupportedModelError(
                f"the model in memory has {len(found)} parameters that could be `{printable(name, 120)}`, not one",
                hint="what was adopted into this version cannot be put into the model; its checkpoint is not affected",
                tensor=name,
            )
        self.ranks.tell("tensor", name=name, shape=list(weight_DE.shape))
        ((own, parameter),) = found
        with torch.no_grad():
            if not parameter.is_meta:
                self.ranks.spread(parameter.copy_(weight_DE))
                return
            values_DE = weight_DE.to(self.device, parameter.dtype)
            self.ranks.spread(values_DE)
            put_away(self.network, own, values_DE)


def load_model(
    folder: Path,
    family: Family,
    layers: Sequence[int],
    names: Mapping[int, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    placement: Placement = WHOLE,
    ranks: Ranks = ALONE,
) -> EditableModel:
    """Load a checkpoint folder with transformers, on every rank, without running any code of its own.

    Args:
        folder: the checkpoint.
        family: how its architecture names its parts.
        layers: the edited blocks, ascending.
        names: name on disk of the edited tensor of each.
        device: where to compute.
        dtype: in what.
        placement: the blocks that shall not lie on the device, none of them an edited one; needs accelerate.
        ranks: the processes that shall hold the model.

    Raises:
        UnsupportedModelError: transformers cannot load it, its tokenizer is not a fast one, or an edited matrix is missing,
            has a shape of its own, or shares its memory with another parameter.
        ResourceError: the model does not fit into memory.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    ranks.tell(
        "load",
        folder=str(folder.resolve()),
        family=asdict(family),
        layers=list(layers),
        names=[names[layer] for layer in layers],
        dtype=str(dtype).removeprefix("torch."),
        placement=asdict(placement),
    )
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if placement.away:
            options["device_map"] = _device_map(folder, family, placement, device)
            return_freed_memory()
        with quiet_accelerate():
            network = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
        if not placement.away:
            network = network.to(device)
    except torch.OutOfMemoryError as error:
        gc.collect()
        raise ResourceError(
            f"the model does not fit into the memory of `{device}`",
            hint="use a smaller dtype with `--dtype bfloat16`, or `--device cpu`",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModelError(
            f"transformers cannot load the model: {first_line[:200]}",
            hint="check that `AutoModelForCausalLM.from_pretrained` loads this folder without `trust_remote_code`",
        ) from error
    check_tokenizer(tokenizer)
    network.eval()
    network.requires_grad_(False)
    model = EditableModel(
        network=network,
        tokenizer=tokenizer,
        family=family,
        layers=tuple(layers),
        names=dict(names),
        device=device,
        placement=placement,
        ranks=ranks,
    )
    _check_matrices(model)
    model.blocks_return_tuples = _returns_tuple(model)
    return model


def _device_map(folder: Path, family: Family, placement: Placement, device: torch.device) -> dict[str, str]:
    """Return where every part of the model in a folder shall lie, told from its configuration alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return device_map(network, _find_blocks(network, family), placement, device)


def _returns_tuple(model: EditableModel) -> bool:
    """Run one token through the model to see what form a block's output has."""
    seen: list[bool] = []
    handle = model.blocks[0].register_forward_hook(lambda *arguments: seen.append(isinstance(arguments[2], tuple)))
    try:
        with torch.no_grad():
            model.network(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
    finally:
        handle.remove()
    return bool(seen) and seen[0]


def _find_blocks(network: Any, family: Family) -> nn.ModuleList:
    found = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and (name == family.blocks or name.endswith("." + family.blocks))
        and "vision" not in name
        and "audio" not in name
    ]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"the model has {len(found)} lists of blocks named `{family.blocks}`, not one",
            hint="name the decoder blocks by their whole path as `blocks` under [model] in `reviver.toml`",
        )
    return found[0]


def _check_matrices(model: EditableModel) -> None:
    """Raise unless every edited matrix is there, is a matrix, and belongs to nobody else."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.network.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), []).append(name)
    count = len(model.blocks)
    for layer in model.layers:
        if not 0 <= layer < count:
            raise UsageError(f"the model has no block {layer}", hint=f"its {count} blocks are 0 to {count - 1}")
        try:
            weight = model.weight(layer)
        except AttributeError as error:
            raise UnsupportedModelError(
                f"block {layer} has no matrix `{model.family.matrix}`",
                hint="name it as `matrix` under [model] in `reviver.toml`",
            ) from error
        if weight.ndim != 2:
            raise UnsupportedModelError(f"`{model.names[layer]}` is not a matrix", hint="choose other blocks")
        shared = owners.get(weight.data_ptr(), [])
        if len(shared) > 1:
            raise UnsupportedModelError(
                f"`{model.names[layer]}` is tied to {len(shared) - 1} other parameter(s), so that an edit would change both",
                hint="choose other blocks with `--layers`",
            )
