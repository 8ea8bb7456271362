"""What became of an update once its tensor was rounded and written: how much of it arrived, what leaked, what turned.

Legend: D, E the axes of the tensor as it lies on disk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reviver.editing.accumulation import Accumulation, Unfiltered
from reviver.spectral.basis import SpectralBasis, compute_basis
from reviver.spectral.drift import subspace_similarity
from reviver.spectral.filter import captured_fraction, leakage_dense

SIMILARITY_RANK = 16
"""The rank at which subspaces are compared, whatever the filter: drift has to be measured the same way with and without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDiagnostics:
    """Measurements of one edited tensor, on the values as stored.

    Attributes:
        norm: ‖Δ‖ of this version's patch.
        norm_before_filter: ‖Δ‖ as the editor asked for it.
        relative_norm: ‖Δ‖ / ‖W_base‖.
        captured_fraction: ⟨W_vN − W_parent, Δ⟩ / ‖Δ‖²; None where Δ is zero.
        leakage_after_rounding: shares of W_vN − W_parent in the protected left and right subspaces; None without a filter.
        subspace_similarity: overlap of the leading subspaces with the base's, left and right.
    """

    norm: float
    norm_before_filter: float
    relative_norm: float
    captured_fraction: float | None
    leakage_after_rounding: tuple[float, float] | None
    subspace_similarity: tuple[float, float]


def diagnose(
    total: Accumulation,
    unfiltered: Unfiltered,
    *,
    base_DE: Tensor,
    parent_DE: Tensor,
    result_DE: Tensor,
    base_basis: SpectralBasis,
    rank: int | None,
) -> TensorDiagnostics:
    """Measure one edited tensor.

    Args:
        total: the filtered updates, as the patch stores them.
        unfiltered: what the editor asked for.
        base_DE: the base tensor's values.
        parent_DE: the parent version's tensor as stored.
        result_DE: this version's tensor as stored.
        base_basis: spectral basis of the base tensor.
        rank: protected rank; None without a filter.
    """
    norm = total.norm()
    change_DE = result_DE.double() - parent_DE.double()
    factors = total.factors()
    if norm == 0:
        captured = None
    elif factors is not None:
        captured = captured_fraction(change_DE, factors[0].to(change_DE), factors[1].to(change_DE))
    else:
        dense_DE = total.dense().to(change_DE)
        captured = float((change_DE * dense_DE).sum() / dense_DE.pow(2).sum())
    leakage = None
    if rank is not None and bool(change_DE.any()):
        leakage = leakage_dense(change_DE, base_basis, rank)
    compared = min(SIMILARITY_RANK, base_basis.width)
    edited = compute_basis(result_DE, compared, spectrum=False)
    base_norm = float(torch.linalg.vector_norm(base_DE.double()))
    return TensorDiagnostics(
        norm=norm,
        norm_before_filter=unfiltered.norm(),
        relative_norm=norm / base_norm if base_norm else 0.0,
        captured_fraction=captured,
        leakage_after_rounding=leakage,
        subspace_similarity=subspace_similarity(base_basis.narrow(compared), edited, compared),
    )
