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
from reviver.editing.ranks import Ranks
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
    due: Callable[[], bool] | None = None,
    keep: Callable[[MomentSums], None] | None = None,
    progress: Progress | None = None,
) -> MomentSums:
    """Read the corpus from where `sums` stands until `tokens` keys were seen, and add them up.

    Several ranks read as many batches at once. They take the batches that one process would take, so that the sums are the same
    but for the order of the additions; on followers they end up as zeros.

    Args:
        model: the base.
        corpus: numbered batches of text, on every rank.
        sums: changed in place and returned.
        tokens: keys wanted.
        due: asked after every batch whether `keep` shall be called.
        keep: given the sums so far, so that they can be saved now and then.
        progress: told the tokens read.

    Raises:
        NumericsError: a key is not finite.
        ResourceError: the corpus holds no text at all.
    """
    layers, ranks = sorted(sums.sums), model.ranks
    ranks.tell(
        "moments", corpus=corpus.describe(), layers=layers, tokens=tokens, seen=sums.tokens, batches=sums.batches
    )
    batches = iter(corpus.batches(model, sums.batches + ranks.rank, ranks.size))
    with (progress or NullProgress()).task("second moments", total=tokens, unit="tokens") as task:
        task.advance(min(sums.tokens, tokens))
        while sums.tokens < tokens:
            rows: Sequence[Sequence[int]] = next(batches, ())
            wanted = _first_wanted(ranks.numbers(sum(map(len, rows))), tokens - sums.tokens)
            if not wanted:
                break
            if ranks.rank < len(wanted):
                _add_batch(model, make_batch(rows, model.device), layers, sums)
            sums.tokens += sum(wanted)
            sums.batches += len(wanted)
            task.advance(sum(wanted))
            if ranks.numbers(int(due is not None and due()))[0]:
                _sum_on_first(ranks, sums)
                if keep is not None:
                    keep(sums)
    if sums.tokens == 0:
        raise ResourceError("the corpus holds no text", hint="name another `--corpus`, or leave it out")
    _sum_on_first(ranks, sums)
    for layer in layers:
        if not bool(torch.isfinite(sums.sums[layer]).all()):
            raise NumericsError(
                f"the keys of block {layer} are not finite",
                hint="compute in float32 with `--dtype float32`; the checkpoint may be damaged",
            )
    return sums


def _first_wanted(counts: Sequence[int], tokens: int) -> list[int]:
    """Return the sizes of the batches, in order, that are still wanted: until the tokens are enough or a batch is empty."""
    wanted: list[int] = []
    for count in counts:
        if not count or sum(wanted) >= tokens:
            break
        wanted.append(count)
    return wanted


def _sum_on_first(ranks: Ranks, sums: MomentSums) -> None:
    for layer in sorted(sums.sums):
        ranks.sum_on_first(sums.sums[layer])


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
