"""How far the tensors of a new version have turned from the base's, added to their entries in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from reviver.checkpoint.delta import Delta
from reviver.editing.base import version_tensor
from reviver.editing.diagnostics import SIMILARITY_RANK
from reviver.editing.preparation import Preparation
from reviver.history.manifest import ManifestTensor, Sides
from reviver.spectral.basis import compute_basis
from reviver.spectral.drift import subspace_similarity
from reviver.spectral.filter import leakage_dense

Deltas = Mapping[str, Sequence[Delta]]


def with_drift(
    preparation: Preparation,
    tensors: Sequence[ManifestTensor],
    before: Deltas,
    after: Deltas,
    device: torch.device,
) -> list[ManifestTensor]:
    """Return the entries with leakage and subspace similarity, measured on the values as stored.

    Args:
        preparation: the base's files and spectral bases.
        tensors: the entries.
        before: the parent's deltas by tensor.
        after: the new version's.
        device: where to compute.
    """
    measured = []
    for tensor in tensors:
        width = max(1, tensor.protected_rank or 0, preparation.basis_width(tensor.name))
        basis = preparation.basis(tensor.name, width, device)
        result_DE = version_tensor(preparation.folder, tensor.name, after[tensor.name], device)
        change_DE = (
            result_DE.double()
            - version_tensor(preparation.folder, tensor.name, before.get(tensor.name, ()), device).double()
        )
        leaked = None
        if tensor.protected_rank is not None and bool(change_DE.any()):
            left, right = leakage_dense(change_DE, basis, tensor.protected_rank)
            leaked = Sides(left=left, right=right)
        compared = min(SIMILARITY_RANK, basis.width)
        turned = subspace_similarity(
            basis.narrow(compared), compute_basis(result_DE, compared, spectrum=False), compared
        )
        measured.append(
            replace(tensor, leakage_after_rounding=leaked, subspace_similarity=Sides(left=turned[0], right=turned[1]))
        )
    return measured
