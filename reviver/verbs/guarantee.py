"""The filter's guarantee, proven anew: no patch that claims a protected rank k moves the base's k leading directions.

Nothing that `init` or the editor left behind is believed. The singular vectors of every base tensor are computed afresh from the
base's bytes, and what is measured is the patch as it lies in `edits/`, relative to its own size: ‖U_kᵀ Δ‖ / ‖Δ‖ and ‖Δ V_k‖ / ‖Δ‖.
All of it in float64 on the CPU, one tensor at a time, each tensor's vectors once for all versions.

A singular vector is determined only as far as its singular value is apart from the next: of two that are equal, any rotation
of their vectors is as good, and another machine finds another one. So where σ_k and σ_{k+1} are closer than what `choose_rank`
lets divide a subspace, no patch can be held to the directions on either side of that gap; it is held to those before the last
gap that divides, and the report says how many were left out. The filter itself never protects half a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reviver.checkpoint.delta import Delta, LowRankDelta
from reviver.checkpoint.floats import decode
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.errors import ReviverError
from reviver.history.manifest import ManifestFilter, ManifestTensor
from reviver.history.patch import Patch
from reviver.history.untrusted import problem_of
from reviver.history.verification import Finding
from reviver.history.version import Version
from reviver.progress import Progress
from reviver.spectral.basis import GAP, SpectralBasis, compute_basis
from reviver.spectral.filter import leakage, leakage_dense

TOLERANCE = 1e-5
"""The most that may be left of a patch in the protected directions, as a share of its norm. Factors that were projected twice and
rounded to float32 leave about 4e-8; one projection in float32, or a basis of that accuracy, leaves 5e-4."""

# Energies are sums over the spectrum, which another machine adds up in another order.
_ENERGY_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What was proven of one version's patch.

    Attributes:
        tensors: how many of its tensors claim a protected rank, and were measured.
        leak: the largest of both sides of all of them: ‖U_kᵀ Δ‖ / ‖Δ‖ or ‖Δ V_k‖ / ‖Δ‖; None where none claims anything.
        undetermined: how many protected directions of all these tensors were left out, since the base does not determine them.
    """

    tensors: int
    leak: float | None
    undetermined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """One tensor of one version that must keep out of k directions."""

    version: Version
    patch: Patch
    tensor: ManifestTensor
    rank: int


def check_guarantee(
    pin: BasePin, versions: Sequence[Version], progress: Progress
) -> tuple[dict[str, Guarantee], list[Finding]]:
    """Measure all patches that claim the filter against the base.

    Args:
        pin: the base, whose files were found to be the pinned ones.
        versions: whose manifests and patches were found sound.
        progress: told of each tensor.

    Returns:
        What was proven, by version; and the findings, of which a version without its whole proof has at least one.
    """
    findings: list[Finding] = []
    claims: dict[str, list[_Claim]] = {}
    for version in versions:
        findings += _unclaimed(version)
        try:
            patch = version.patch()
        except ReviverError as error:
            findings.append(Finding(version=version.name, path=None, tensor=None, problem=problem_of(error)))
            continue
        for tensor in version.manifest.tensors:
            if tensor.protected_rank is not None:
                claim = _Claim(version=version, patch=patch, tensor=tensor, rank=tensor.protected_rank)
                claims.setdefault(tensor.name, []).append(claim)
    proofs = {version.name: Guarantee(tensors=0, leak=None, undetermined=0) for version in versions}
    if not claims:
        return proofs, findings
    folder = CheckpointFolder.open(Path(pin.folder))
    with progress.task("the filter's guarantee", total=len(claims), unit="tensors") as task:
        for name in sorted(claims):
            findings += _check_tensor(folder, name, claims[name], proofs)
            task.advance()
    return proofs, findings


def _unclaimed(version: Version) -> Iterator[Finding]:
    """Yield the tensors that escape the filter which the manifest's id covers: their own entries are not part of it."""
    name = version.manifest.filter.name
    for tensor in version.manifest.tensors if name != "none" else ():
        if not tensor.protected_rank:
            yield _finding(
                version, tensor.name, f"the filter `{name}` is claimed, but no protected rank for this tensor"
            )


def _check_tensor(
    folder: CheckpointFolder, name: str, claims: Sequence[_Claim], proofs: dict[str, Guarantee]
) -> Iterator[Finding]:
    """Yield what does not hold of one tensor, and add what does to the proofs."""
    widest = max(claim.rank for claim in claims)
    try:
        spectrum = _Spectrum(folder, name, widest)
    except ReviverError as error:
        yield from (_finding(claim.version, name, problem_of(error)) for claim in claims)
        return
    for claim in claims:
        short = spectrum.shortfall(claim.version.manifest.filter, claim.rank)
        if short is not None:
            yield _finding(claim.version, name, short)
        held = spectrum.determined(claim.rank)
        try:
            leak = max(_leaks(claim.patch.delta(name), spectrum.basis, held))
        except ReviverError as error:
            yield _finding(claim.version, name, problem_of(error))
            continue
        # A number that is none does not hold either.
        if not leak <= TOLERANCE:
            yield _finding(
                claim.version,
                name,
                f"{leak:.1e} of its patch lies in the base's {held:,} leading directions, which it claims to keep "
                f"out of (at most {TOLERANCE:.0e} may)",
            )
        before = proofs[claim.version.name]
        proofs[claim.version.name] = Guarantee(
            tensors=before.tensors + 1,
            leak=leak if before.leak is None else max(before.leak, leak),
            undetermined=before.undetermined + claim.rank - held,
        )


class _Spectrum:
    """The leading directions of one base tensor, and how far they are determined.

    Args:
        folder: the base.
        name: of the tensor.
        widest: the largest protected rank that anybody claims.

    Raises:
        ReviverError: the tensor cannot be read, or is not finite.
    """

    def __init__(self, folder: CheckpointFolder, name: str, widest: int) -> None:
        self._folder = folder
        self._name = name
        weight_DE = self._weight()
        # One more than is protected tells how wide the gap after it is.
        self.basis: SpectralBasis = compute_basis(weight_DE, min(widest + 1, *weight_DE.shape), spectrum=False)

    def _weight(self) -> Tensor:
        entry = self._folder.entry(self._name)
        return torch.from_numpy(decode(self._folder.read_tensor(self._name), entry.dtype, entry.shape))

    def determined(self, rank: int) -> int:
        """Return the largest number of leading directions, at most `rank`, with a gap after them that divides."""
        values = self.basis.singular_values[: rank + 1]
        following = torch.cat([values[1:], values.new_zeros(rank + 1 - len(values))])[:rank]
        divides = _dividing(values[:rank], following, float(self.basis.singular_values[0]))
        return int(divides[-1]) + 1 if len(divides) else 0

    def shortfall(self, filter: ManifestFilter, rank: int) -> str | None:
        """Return how a protected rank falls short of what the filter was asked for; None where it does not."""
        if filter.rank is not None and rank < filter.rank:
            asked = f"k = {filter.rank:,}"
        elif filter.energy is not None and self._energy(rank) < filter.energy - _ENERGY_ROUNDING:
            asked = f"the energy {filter.energy:g}"
        else:
            return None
        if self._divided_after(rank):
            return f"the filter was to protect {asked}, and the manifest claims only k = {rank:,} for this tensor"
        return None  # All that follow are one cluster, in front of which the filter stays.

    def _energy(self, rank: int) -> float:
        total = self.basis.frobenius**2
        return float(self.basis.singular_values[:rank].square().sum()) / total if total else 1.0

    def _divided_after(self, rank: int) -> bool:
        """Tell whether any gap after the first `rank` singular values, and before the last, divides a subspace."""
        if not self.basis.complete:
            self.basis = compute_basis(self._weight(), self.basis.width)
        values = self.basis.singular_values
        return bool(len(_dividing(values[rank:-1], values[rank + 1 :], float(values[0]))))


def _dividing(values: Tensor, following: Tensor, largest: float) -> Tensor:
    """Return the places where a singular value and the one that follows are far enough apart, as `choose_rank` has it."""
    return torch.nonzero((values - following >= GAP * largest) & (values > 0)).flatten()


def _leaks(delta: Delta, basis: SpectralBasis, rank: int) -> tuple[float, float]:
    if isinstance(delta, LowRankDelta):
        return leakage(_double(delta.left), _double(delta.right), basis, rank)
    return leakage_dense(_double(delta.values), basis, rank)


def _double(values: np.ndarray) -> Tensor:
    """Return float32 values, perhaps mapped from a file, as a float64 tensor of their own."""
    return torch.from_numpy(values.astype(np.float64))


def _finding(version: Version, tensor: str, problem: str) -> Finding:
    return Finding(version=version.name, path=None, tensor=tensor, problem=problem)
