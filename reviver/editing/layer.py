"""One edited tensor while rounds go over it: its base, its live values, and the sums that become the patch.

Legend: O output features, I input features, N facts; D, E the axes of the tensor as it lies on disk, R components.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from reviver.editing.accumulation import Accumulation
from reviver.editing.editors.base import DenseUpdate, Memory, Update
from reviver.editing.editors.moments import SecondMoment
from reviver.editing.model import TORCH_DTYPES
from reviver.spectral.basis import SpectralBasis
from reviver.spectral.factors import balance
from reviver.spectral.filter import filter_dense, filter_factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """One update as it was added: a pair of float32 factors `[D, R]`, `[R, E]`, or one float64 matrix `[D, E]`.

    Attributes:
        asked: before the filter.
        filtered: after it.
    """

    asked: tuple[Tensor, ...]
    filtered: tuple[Tensor, ...]


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
        fresh: what was added since whoever saves rounds looked last.
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
    unfiltered: Accumulation = field(init=False)
    fresh: list[Addition] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.base_DE.shape[0], self.base_DE.shape[1])
        self.total = Accumulation(shape)
        self.unfiltered = Accumulation(shape)

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
            asked_DE = update.on_disk(transposed=self.transposed)
            values_DE = asked_DE
            if self.basis is not None and self.rank is not None:
                values_DE = filter_dense(asked_DE, self.basis, self.rank)
            self.put(Addition(asked=(asked_DE,), filtered=(values_DE,)))
            return
        left_DR, right_RE = update.on_disk(transposed=self.transposed)
        asked = balance(left_DR, right_RE)
        if self.basis is not None and self.rank is not None:
            left_DR, right_RE = filter_factors(left_DR, right_RE, self.basis, self.rank)
        filtered = balance(left_DR, right_RE)
        self.put(Addition(asked=_as_saved(asked), filtered=_as_saved(filtered)))

    def put(self, addition: Addition) -> None:
        """Add what was filtered already; the same additions in the same order give the same bits."""
        self.fresh.append(addition)
        if len(addition.filtered) == 1:
            self.unfiltered.add_dense(addition.asked[0])
            self.total.add_dense(addition.filtered[0])
            self.live_DE += addition.filtered[0].to(self.live_DE)
            return
        self.unfiltered.add_factors(*addition.asked)
        self.total.add_factors(*addition.filtered)
        left_DR, right_RE = addition.filtered
        self.live_DE += left_DR.to(self.live_DE) @ right_RE.to(self.live_DE)


def _as_saved(factors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return factors that lie in memory as they do when they come from a file; else products with them differ in the last bit."""
    left_DR, right_RE = (factor.float().clone(memory_format=torch.contiguous_format) for factor in factors)
    return left_DR, right_RE
