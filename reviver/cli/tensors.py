"""The table of what a patch does to its tensors, which several commands draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reviver.cli.output import make_table
from reviver.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from reviver.history.manifest import ManifestTensor, Sides


def tensor_table(tensors: Sequence[ManifestTensor], *, planned: bool = False, leakage: bool = False) -> Table:
    """Return a table of tensors: rank and norm of the patch, what rounding let through, how alike the subspaces still are.

    Args:
        tensors: of one version.
        planned: a plan has told dtypes and ranks already.
        leakage: also tell what share of the stored change lies in the protected directions, because it was rounded.
    """
    columns = {"tensor": [printable(tensor.name, 80) for tensor in tensors]}
    if not planned:
        columns["dtype"] = [tensor.dtype for tensor in tensors]
        columns["patch rank"] = [_rank(tensor.patch_rank, "dense") for tensor in tensors]
        columns["k"] = [_rank(tensor.protected_rank, "-") for tensor in tensors]
    columns["‖Δ‖ before filter"] = [_norm(tensor.norm_before_filter) for tensor in tensors]
    columns["‖Δ‖"] = [_norm(tensor.norm) for tensor in tensors]
    columns["‖Δ‖/‖W‖"] = [f"{tensor.relative_norm:.2%}" for tensor in tensors]
    columns["captured"] = [_share(tensor.captured_fraction) for tensor in tensors]
    columns["similarity"] = [_sides(tensor.subspace_similarity, ".3f") for tensor in tensors]
    if leakage:
        columns["leakage"] = [_sides(tensor.leakage_after_rounding, ".2%") for tensor in tensors]
    table = make_table(*columns, right=tuple(name for name in columns if name not in ("tensor", "dtype")))
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _rank(rank: int | None, none: str) -> str:
    return none if rank is None else str(rank)


def _norm(norm: float) -> str:
    return f"{norm:#.3g}".removesuffix(".")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _sides(sides: Sides | None, form: str) -> str:
    return "-" if sides is None else f"{sides.left:{form}} {sides.right:{form}}"
