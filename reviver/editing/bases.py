"""Spectral bases of many tensors, shared among the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.preparation import Preparation, read_weight
from reviver.editing.ranks import ALONE, Ranks
from reviver.progress import NullProgress, Progress
from reviver.spectral.basis import SpectralBasis, compute_basis


def prepare_bases(
    preparation: Preparation,
    widths: Mapping[str, int],
    device: torch.device,
    *,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> list[str]:
    """Make sure that every tensor has a basis of at least its width; return the names that had to be computed."""
    missing = {name: width for name, width in widths.items() if preparation.basis_width(name) < width}
    with (progress or NullProgress()).task("spectral bases", total=len(widths), unit="matrices") as task:
        task.advance(len(widths) - len(missing))
        for name, basis in compute_bases(preparation.folder, missing, device, ranks):
            preparation.keep_basis(name, basis)
            task.advance()
    return list(missing)


def compute_bases(
    folder: CheckpointFolder, widths: Mapping[str, int], device: torch.device, ranks: Ranks
) -> Iterator[tuple[str, SpectralBasis]]:
    """Yield the spectral bases of some tensors of a base, each rank computing one at a time; nothing on followers.

    Raises:
        NumericsError: a tensor is not finite.
    """
    if widths:
        ranks.tell("bases", folder=str(folder.root.resolve()), widths=dict(widths))
    wanted = list(widths.items())
    for start in range(0, len(wanted), ranks.size):
        found = []
        for name, width in ranks.share(wanted[start : start + ranks.size]):
            basis = compute_basis(read_weight(folder, name, device), width, device=device)
            frobenius = torch.tensor(basis.frobenius, dtype=torch.float64)
            found = [basis.left_DK, basis.right_EK, basis.singular_values, frobenius]
        for (name, _), (left_DK, right_EK, values, frobenius) in zip(
            wanted[start:], filter(None, ranks.gather(found)), strict=False
        ):
            shape = (left_DK.shape[0], right_EK.shape[0])
            yield (
                name,
                SpectralBasis(
                    left_DK=left_DK, right_EK=right_EK, singular_values=values, frobenius=float(frobenius), shape=shape
                ),
            )
