"""Second moments of the keys: `C = E[k kᵀ]` over ordinary text, of all edited blocks in one pass.

Legend: B rows, T columns, I MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reviver.editing.corpus import Corpus
from reviver.editing.model import EditableModel
from reviver.editing.propagation import run_to
from reviver.editing.tokens import Batch, make_batch
from reviver.errors import NumericsError, ResourceError
from reviver.progress import NullProgress, Progress


@dataclass(slots=True, kw_only=True)
class MomentSums:
    """The running sums of a pass over a corpus, and where in it the pass stands.

    Attributes:
        sums: `Σ k kᵀ` `[I, I]` by block.
        tokens: how many keys were added.
        batches: how many batches of the corpus were read.
    """

    sums: dict[int, Tensor]
    tokens: int = 0
    batches: int = 0

    @classmethod
    def empty(cls, model: EditableModel, layers: Sequence[int]) -> MomentSums:
        """Return sums of nothing, in float64 on the CPU and in float32 on a GPU, where memory is dear."""
        dtype = torch.float64 if model.device.type == "cpu" else torch.float32
        sums = {}
        for layer in layers:
            width = model.inner_width(layer)
            sums[layer] = torch.zeros((width, width), dtype=dtype, device=model.device)
        return cls(sums=sums)

    def second_moment(self, layer: int) -> Tensor:
        """Return `E[k kᵀ]` of block `layer`, `[I, I]`, float32."""
        return (self.sums[layer] / max(self.tokens, 1)).float()


def add_moments(
    model: EditableModel,
    corpus: Corpus,
    sums: MomentSums,
    *,
    tokens: int,
    keep: Callable[[MomentSums], None] | None = None,
    progress: Progress | None = None,
) -> MomentSums:
    """Read the corpus from where `sums` stands until `tokens` keys were seen, and add them up.

    Args:
        model: the base.
        corpus: numbered batches of text.
        sums: changed in place and returned.
        tokens: keys wanted.
        keep: called after every batch, so that the caller can save the sums now and then.
        progress: told the tokens read.

    Raises:
        NumericsError: a key is not finite.
        ResourceError: the corpus holds no text at all.
    """
    layers = sorted(sums.sums)
    with (progress or NullProgress()).task("second moments", total=tokens, unit="tokens") as task:
        task.advance(min(sums.tokens, tokens))
        for rows in corpus.batches(model, sums.batches):
            if sums.tokens >= tokens:
                break
            batch = make_batch(rows, model.device)
            _add_batch(model, batch, layers, sums)
            added = int(batch.mask_BT.sum())
            sums.tokens += added
            sums.batches += 1
            task.advance(added)
            if keep is not None:
                keep(sums)
    if sums.tokens == 0:
        raise ResourceError("the corpus holds no text", hint="name another `--corpus`, or leave it out")
    for layer in layers:
        if not bool(torch.isfinite(sums.sums[layer]).all()):
            raise NumericsError(
                f"the keys of block {layer} are not finite",
                hint="compute in float32 with `--dtype float32`; the checkpoint may be damaged",
            )
    return sums


def _add_batch(model: EditableModel, batch: Batch, layers: Sequence[int], sums: MomentSums) -> None:
    """Add the keys of one batch; nothing above the last edited block is computed."""
    mask_BT = batch.mask_BT.bool()

    def add(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            # The keys of one block are added up before the next block's exist, which bounds the memory.
            keys = arguments[0].view(*batch.ids_BT.shape, -1)[mask_BT].to(sums.sums[layer].dtype)
            sums.sums[layer].addmm_(keys.T, keys)

        return hook

    with ExitStack() as stack:
        for layer in layers:
            handle = model.matrix(layer).register_forward_pre_hook(add(layer))
            stack.callback(handle.remove)
        run_to(model, batch, layers[-1])


def moments_record(corpus: Corpus, sums: MomentSums) -> Mapping[str, object]:
    """Return what is kept beside a second moment: its corpus and the number of tokens."""
    return {"corpus": corpus.describe(), "tokens": sums.tokens}
