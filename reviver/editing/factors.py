"""Second moments made ready to be solved with: their Cholesky factors and null spaces, kept in the workspace where that saves time.

Legend: I MLP width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reviver.editing.editors.moments import RIDGE, SecondMoment
from reviver.editing.preparation import Preparation
from reviver.errors import WorkspaceError

FACTOR_WIDTH = 1536
"""From this width of an MLP on, the Cholesky factor of a second moment is read faster than it is computed on a CPU (measured by
`tests/benchmarks/speed.py solve`)."""


def open_moment(preparation: Preparation, name: str, weight: float, device: torch.device) -> SecondMoment:
    """Return the second moment of an edited tensor, ready to be solved with.

    On a CPU the Cholesky factor of a large one is kept in the workspace, where reading it takes a fraction of computing it;
    a GPU computes it in less time than a disk reads it. The null space that AlphaEdit asks for takes far longer than that on
    either. Neither depends on λ. The caller holds the workspace's lock.

    Args:
        preparation: of the base.
        name: of the tensor.
        weight: λ.
        device: where to solve.

    Raises:
        WorkspaceError: the second moment is not there, or one of the two is damaged.
        BaseMismatchError: one of them belongs to another base.
        NumericsError: the second moment is damaged.
    """
    moment_II = preparation.second_moment(name)
    if moment_II.shape[0] < FACTOR_WIDTH:
        return SecondMoment(moment_II, weight, device=device)
    null_spaces = SavedNullSpaces(preparation, name)
    if device.type != "cpu":
        return SecondMoment(moment_II, weight, null_spaces=null_spaces, device=device)
    factors, fingerprint = preparation.factors, preparation.pin.tensor_sha256[name]
    made_from = {**_moment_of(preparation, name), "ridge": RIDGE}
    record = factors.record(name, fingerprint)
    if record is not None and all(record.get(key) == value for key, value in made_from.items()):
        kept = factors.load(name, fingerprint)
        if kept is not None and "factor" in kept[0]:
            factor_II = unpacked(kept[0]["factor"], moment_II.shape[0])
            return SecondMoment(
                moment_II,
                weight,
                factor_II=factor_II,
                applied_ridge=float(str(kept[1]["applied_ridge"])),
                null_spaces=null_spaces,
            )
    moment = SecondMoment(moment_II, weight)
    # Row by row, as one that is read lies in memory: else what this run solves differs in the last bit from what a later one does.
    factor_II, ridge = moment.factor().contiguous(), moment.applied_ridge
    factors.save(name, fingerprint, {"factor": packed(factor_II)}, {**made_from, "applied_ridge": ridge})
    return SecondMoment(moment_II, weight, factor_II=factor_II, applied_ridge=ridge, null_spaces=null_spaces)


def bytes_to_save(preparation: Preparation, name: str, device: torch.device, *, null_space: int) -> int:
    """Return how much is going to be kept in the workspace for a second moment, beside what is there.

    Args:
        preparation: of the base.
        name: of the tensor.
        device: where to solve.
        null_space: bytes of the null space; 0 where none is asked for.
    """
    width, fingerprint = max(preparation.folder.entry(name).shape), preparation.pin.tensor_sha256[name]
    if width < FACTOR_WIDTH:
        return 0
    factor = 4 * width * (width + 1) if device.type == "cpu" else 0
    stores = ((preparation.factors, factor), (preparation.null_spaces, null_space))
    return sum(size for store, size in stores if size and store.record(name, fingerprint) is None)


class SavedNullSpaces:
    """The null space of one tensor's second moment in the workspace; that of the limit it was last asked for.

    Kept to the last bit, so that an edit that reads it goes on like the one that computed it.

    Args:
        preparation: of the base.
        name: of the tensor.
    """

    def __init__(self, preparation: Preparation, name: str) -> None:
        self._store = preparation.null_spaces
        self._name = name
        self._fingerprint = preparation.pin.tensor_sha256[name]
        self._made_from = _moment_of(preparation, name)

    def load(self, *, threshold: float | None, share: float | None) -> Tensor | None:
        """Return the directions `[I, K]`, float64, that were saved for this limit; None where there are none.

        Raises:
            WorkspaceError: the file is damaged.
            BaseMismatchError: it belongs to another base.
        """
        record = self._store.record(self._name, self._fingerprint)
        wanted = {**self._made_from, "threshold": threshold, "share": share}
        if record is None or any(record.get(key) != value for key, value in wanted.items()):
            return None
        kept = self._store.load(self._name, self._fingerprint)
        return None if kept is None else kept[0].get("directions")

    def save(self, directions_IK: Tensor, *, threshold: float | None, share: float | None) -> None:
        """Save directions in place of what is there.

        Raises:
            ResourceError: the disk is full or cannot be written to.
        """
        record = {**self._made_from, "threshold": threshold, "share": share}
        self._store.save(self._name, self._fingerprint, {"directions": directions_IK}, record)


def _moment_of(preparation: Preparation, name: str) -> dict[str, object]:
    """Return what tells the second moment of a tensor from another."""
    record = preparation.moments.record(name, preparation.pin.tensor_sha256[name]) or {}
    return {"second_moment": record.get("sha256")}


def packed(factor_II: Tensor) -> Tensor:
    """Return the lower triangle of a square matrix, row by row, as one vector."""
    return factor_II[_lower(factor_II.shape[0])]


def unpacked(values: Tensor, size: int) -> Tensor:
    """Return the lower triangular matrix `[size, size]` of a vector that `packed` made.

    Raises:
        WorkspaceError: the vector has another length.
    """
    if values.shape != (size * (size + 1) // 2,):
        raise WorkspaceError(
            "the factor of a second moment has the wrong size",
            hint="delete `.reviver/statistics/factors`; it is computed again",
        )
    factor_II = torch.zeros((size, size), dtype=values.dtype)
    factor_II[_lower(size)] = values
    return factor_II


def _lower(size: int) -> Tensor:
    return torch.ones((size, size), dtype=torch.bool).tril_()
