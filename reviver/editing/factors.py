"""Second moments made ready to be solved with: their Cholesky factors, kept in the workspace where that saves time.

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
    a GPU computes it in less time than a disk reads it. It does not depend on λ. The caller holds the workspace's lock.

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
    if device.type != "cpu" or moment_II.shape[0] < FACTOR_WIDTH:
        return SecondMoment(moment_II, weight, device=device)
    moments, factors = preparation.moments, preparation.factors
    fingerprint = preparation.pin.tensor_sha256[name]
    made_from = {"second_moment": (moments.record(name, fingerprint) or {}).get("sha256"), "ridge": RIDGE}
    record = factors.record(name, fingerprint)
    if record is not None and all(record.get(key) == value for key, value in made_from.items()):
        kept = factors.load(name, fingerprint)
        if kept is not None and "factor" in kept[0]:
            factor_II = unpacked(kept[0]["factor"], moment_II.shape[0])
            return SecondMoment(
                moment_II, weight, factor_II=factor_II, applied_ridge=float(str(kept[1]["applied_ridge"]))
            )
    moment = SecondMoment(moment_II, weight)
    factors.save(
        name, fingerprint, {"factor": packed(moment.factor())}, {**made_from, "applied_ridge": moment.applied_ridge}
    )
    return moment


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
