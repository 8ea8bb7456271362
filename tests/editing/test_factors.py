"""Kept factors of second moments, and sums of many rounds: the same numbers, and refused where they belong to something else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from reviver.editing import factors
from reviver.editing.accumulation import Accumulation
from reviver.editing.editors.moments import symmetric, symmetric_
from reviver.editing.factors import open_moment, packed, unpacked
from reviver.editing.preparation import Preparation
from reviver.editing.store import MatrixStore
from reviver.errors import BaseMismatchError, WorkspaceError

NAME, SIZE = "layers.1.down", 12
CPU = torch.device("cpu")


def _moment(seed: int) -> torch.Tensor:
    keys = torch.randn(SIZE, 40, generator=torch.Generator().manual_seed(seed))
    return keys @ keys.T / 40


def _preparation(folder: Path, fingerprint: str = "a" * 64) -> Preparation:
    """Return what `open_moment` reads of a preparation: two stores, and the fingerprint of the base's tensor."""
    moments = MatrixStore(lambda name: folder / "moments.safetensors", "second moment")
    found = SimpleNamespace(
        moments=moments,
        factors=MatrixStore(lambda name: folder / "factors.safetensors", "factor"),
        null_spaces=MatrixStore(lambda name: folder / "null_spaces.safetensors", "null space"),
        pin=SimpleNamespace(tensor_sha256={NAME: fingerprint}),
        second_moment=lambda name: cast(Any, moments.load(name, fingerprint))[0]["second_moment"],
    )
    return cast(Preparation, found)


def _keep(preparation: Preparation, moment_II: torch.Tensor) -> None:
    preparation.moments.save(NAME, preparation.pin.tensor_sha256[NAME], {"second_moment": moment_II}, {})


@pytest.fixture(autouse=True)
def keep_small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "FACTOR_WIDTH", 1)


def test_a_kept_factor_is_read_and_solves_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preparation = _preparation(tmp_path)
    _keep(preparation, _moment(0))
    first = open_moment(preparation, NAME, 3.0, CPU)
    # What is kept must be read, not computed again; and another λ needs no other factor.
    monkeypatch.setattr("reviver.editing.editors.moments.ridged_cholesky", None)
    again = open_moment(preparation, NAME, 7.0, CPU)
    assert torch.equal(again.factor(), first.factor()) and again.applied_ridge == first.applied_ridge
    # Also as it lies in memory, on which the last bit of what is solved with it depends.
    assert again.factor().stride() == first.factor().stride()
    vectors = torch.randn(SIZE, 2, dtype=torch.float64)
    wanted = torch.linalg.solve(7.0 * _moment(0).double(), vectors)
    assert torch.allclose(again.solve(vectors), wanted, rtol=1e-5)


def test_a_factor_of_another_moment_or_ridge_is_not_used(tmp_path: Path) -> None:
    preparation = _preparation(tmp_path)
    _keep(preparation, _moment(0))
    stale = open_moment(preparation, NAME, 3.0, CPU).factor()
    _keep(preparation, _moment(1))
    fresh = open_moment(preparation, NAME, 3.0, CPU).factor()
    assert not torch.equal(fresh, stale)
    record = json.loads((tmp_path / "factors.json").read_bytes())
    (tmp_path / "factors.json").write_text(json.dumps({**record, "ridge": 0.5}))
    assert torch.equal(open_moment(preparation, NAME, 3.0, CPU).factor(), fresh)
    assert json.loads((tmp_path / "factors.json").read_bytes())["ridge"] == record["ridge"]


def test_a_factor_of_another_base_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    preparation = _preparation(tmp_path)
    _keep(preparation, _moment(0))
    open_moment(preparation, NAME, 3.0, CPU)
    record = json.loads((tmp_path / "factors.json").read_bytes())
    (tmp_path / "factors.json").write_text(json.dumps({**record, "base_sha256": "b" * 64}))
    with pytest.raises(BaseMismatchError, match="belongs to another base"):
        open_moment(preparation, NAME, 3.0, CPU)
    (tmp_path / "factors.json").write_text(json.dumps(record))
    raw = bytearray((tmp_path / "factors.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "factors.safetensors").write_bytes(bytes(raw))
    with pytest.raises(WorkspaceError, match="changed on disk"):
        open_moment(preparation, NAME, 3.0, CPU)


@pytest.mark.parametrize("limit", [{"threshold": 0.6}, {"share": 0.2}])
def test_a_kept_null_space_is_read_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, float]
) -> None:
    preparation = _preparation(tmp_path)
    _keep(preparation, _moment(0))
    first = open_moment(preparation, NAME, 3.0, CPU).null_space(**limit).values()
    values, vectors = torch.linalg.eigh(_moment(0).double())
    below = values < 0.6 if "threshold" in limit else values.cumsum(0) <= 0.2 * values.sum()
    assert 0 < first.shape[1] < SIZE
    assert torch.allclose(first @ first.T, vectors[:, below] @ vectors[:, below].T, atol=1e-10)
    with monkeypatch.context() as patched:
        patched.setattr(torch.linalg, "eigh", None)
        moment = open_moment(preparation, NAME, 7.0, CPU)
        assert torch.equal(moment.null_space(**limit).values(), first)
        assert moment.null_space(**limit) is moment.null_space(**limit)
    # Another limit, another moment, another base, a damaged file: none of them is taken for it.
    assert open_moment(preparation, NAME, 3.0, CPU).null_space(threshold=9.9).shape == (SIZE, SIZE)
    assert torch.equal(open_moment(preparation, NAME, 3.0, CPU).null_space(**limit).values(), first)
    _keep(preparation, _moment(1))
    assert not torch.equal(open_moment(preparation, NAME, 3.0, CPU).null_space(threshold=9.9).values(), first)
    raw = bytearray((tmp_path / "null_spaces.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "null_spaces.safetensors").write_bytes(bytes(raw))
    with pytest.raises(WorkspaceError, match="changed on disk"):
        open_moment(preparation, NAME, 3.0, CPU).null_space(threshold=9.9)


def test_a_packed_triangle_is_unpacked_to_the_same() -> None:
    factor = torch.randn(5, 5, dtype=torch.float64).tril()
    assert torch.equal(unpacked(packed(factor), 5), factor)
    with pytest.raises(WorkspaceError, match="wrong size"):
        unpacked(packed(factor), 6)


def test_a_symmetric_part_in_place_is_that_of_a_copy() -> None:
    matrix = torch.randn(23, 23, dtype=torch.float64)
    wanted = symmetric(matrix)
    assert torch.equal(symmetric_(matrix, tile=7), wanted)


@pytest.mark.parametrize("rounds", [2, 40])
def test_the_running_norm_is_the_norm(rounds: int) -> None:
    # Forty rounds of two components are larger than the matrix: the sum has become a dense one by then.
    total = Accumulation((9, 11))
    exact = torch.zeros(9, 11, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        left, right = (torch.randn(*shape, generator=generator) for shape in ((9, 2), (2, 11)))
        total.add_factors(left, right)
        exact += left.double() @ right.double()
        norm = float(torch.linalg.matrix_norm(exact))
        assert total.running_norm() == pytest.approx(norm, rel=1e-9)
        assert total.norm() == pytest.approx(norm, rel=1e-9)
    assert (total.rank is None) == (rounds == 40)
