"""One edited tensor while rounds go over it: its base, its live values, and the sums that become the patch.

Legend: O output features, I input features, N facts; D, E the axes of the tensor as it lies on disk, R components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reviver.editing.accumulation import Accumulation, Unfiltered
from reviver.editing.editors.base import DenseUpdate, Memory, Update
from reviver.editing.editors.moments import SecondMoment
from reviver.editing.model import TORCH_DTYPES
from reviver.spectral.basis import SpectralBasis
from reviver.spectral.factors import balance
from reviver.spectral.filter import filter_dense, filter_factors


@dataclass(slots=True, kw_only=True)
class EditedLayer:
    """One edited tensor while rounds go over it.

    Attributes:
        layer: number of the block.
        name: name of the tensor on disk.
        dtype: its stored dtype, as safetensors call it.
        transposed: whether it is stored `[I, O]`.
        base_DE: the pretrained values, in the stored dtype.
        live_DE: the exact sum of base and all updates so far, float32; the model holds it rounded to the stored dtype.
        basis: spectral basis of the base tensor; None without a filter.
        rank: protected rank k; None without a filter.
        moment: λC of the keys; None for editors that need none.
        memory: what the editor keeps of earlier rounds.
        remembered: the keys that this version's rounds have added to the memory, `[I, N]` a round.
        total: the filtered updates of this version.
        unfiltered: what the editor asked for, before the filter.
        fresh: pairs of float32 factors `[D, R]`, `[R, E]` that were added since whoever saves rounds looked last.
        whole: whether an update was a whole matrix. From then on the sums themselves are saved: they are no larger than one such
            update, and what was added is of no use any more.
    """

    layer: int
    name: str
    dtype: str
    transposed: bool
    base_DE: Tensor
    live_DE: Tensor
    basis: SpectralBasis | None = None
    rank: int | None = None
    moment: SecondMoment | None = None
    memory: Memory | None = None
    remembered: list[Tensor] = field(default_factory=list)
    total: Accumulation = field(init=False)
    unfiltered: Unfiltered = field(init=False)
    fresh: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    whole: bool = False

    def __post_init__(self) -> None:
        self.total = Accumulation((self.base_DE.shape[0], self.base_DE.shape[1]))
        self.unfiltered = Unfiltered(self.total, self.basis, self.rank)

    def oriented(self, weight_DE: Tensor) -> Tensor:
        """Return a weight on disk as `[O, I]`."""
        return weight_DE.T if self.transposed else weight_DE

    def stored(self) -> Tensor:
        """Return the live values as they would be stored, `[D, E]`."""
        return self.live_DE.to(TORCH_DTYPES[self.dtype])

    def distance(self) -> float:
        """Return how far all updates have moved the tensor: ‖W - W_0‖ in Frobenius norm, relative to ‖W_0‖."""
        base_DE = self.base_DE.to(self.live_DE)
        return float(torch.linalg.vector_norm(self.live_DE - base_DE) / torch.linalg.vector_norm(base_DE))

    def add(self, update: Update) -> None:
        """Filter an update, add it to the sums and to the live values."""
        if isinstance(update, DenseUpdate):
            values_DE = update.on_disk(transposed=self.transposed)
            self.unfiltered.add_dense(values_DE)
            if self.basis is not None and self.rank is not None:
                values_DE = filter_dense(values_DE, self.basis, self.rank)
            self.whole = True
            self.fresh.clear()
            self.total.add_dense(values_DE)
            self.live_DE += values_DE.to(self.live_DE)
            return
        left_DR, right_RE = update.on_disk(transposed=self.transposed)
        self.unfiltered.add_factors(left_DR, right_RE)
        if self.basis is not None and self.rank is not None:
            left_DR, right_RE = filter_factors(left_DR, right_RE, self.basis, self.rank)
        self.put(*_as_saved(balance(left_DR, right_RE)))

    def put(self, left_DR: Tensor, right_RE: Tensor) -> None:
        """Add factors that were filtered already; the same ones in the same order give the same bits."""
        if not self.whole:
            self.fresh.append((left_DR, right_RE))
        self.total.add_factors(left_DR, right_RE)
        self.live_DE += left_DR.to(self.live_DE) @ right_RE.to(self.live_DE)

    def state(self) -> dict[str, Tensor]:
        """Return what has to be saved, beside all factors that were added, to go on from here to the same bits."""
        whole = {"total": self.total.dense(), "live": self.live_DE} if self.whole else {}
        return {**self.unfiltered.tensors(), **whole}

    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` of an earlier run returned, once all factors that it saved have been put back."""
        self.unfiltered.begin_with(state)
        if "live" in state:
            self.whole = True
            self.total.begin_with(state["total"])
            self.live_DE = state["live"].to(self.live_DE.device)


def _as_saved(factors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return factors that lie in memory as they do when they come from a file; else products with them differ in the last bit."""
    left_DR, right_RE = (factor.float().clone(memory_format=torch.contiguous_format) for factor in factors)
    return left_DR, right_RE
