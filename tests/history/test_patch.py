"""The patch file: bytes that follow from the deltas, and a reader that trusts none of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import workspaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from reviver.checkpoint.delta import DenseDelta, LowRankDelta
from reviver.errors import BaseMismatchError, ManifestError, NumericsError
from reviver.history import patch as patch_module
from reviver.history.patch import Patch, write_patch
from reviver.text import printable

DELTAS = {
    "b.weight": workspaces.low_rank(1, rank=3),
    "a.weight": workspaces.dense(2),
    "ä.weight": workspaces.low_rank(4),
}


def arrays() -> dict[str, np.ndarray]:
    low, dense, other = DELTAS["b.weight"], DELTAS["a.weight"], DELTAS["ä.weight"]
    assert isinstance(low, LowRankDelta) and isinstance(dense, DenseDelta) and isinstance(other, LowRankDelta)
    return {
        "b.weight.left": low.left,
        "b.weight.right": low.right,
        "a.weight.dense": dense.values,
        "ä.weight.left": other.left,
        "ä.weight.right": other.right,
    }


def test_the_bytes_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    size, sha256 = write_patch(path, DELTAS)
    data = path.read_bytes()
    assert data == save(arrays())
    assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_another_order_or_layout_in_memory_gives_the_same_bytes(tmp_path: Path) -> None:
    write_patch(tmp_path / "one", DELTAS)
    turned = {
        name: LowRankDelta(np.asfortranarray(delta.left), np.asfortranarray(delta.right))
        if isinstance(delta, LowRankDelta)
        else DenseDelta(np.asfortranarray(delta.values))
        for name, delta in reversed(list(DELTAS.items()))
    }
    write_patch(tmp_path / "other", turned)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    write_patch(path, DELTAS)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() is None
        assert set(file.keys()) == set(arrays())
        for name, values in arrays().items():
            np.testing.assert_array_equal(file.get_tensor(name), values)


@pytest.mark.parametrize("mapped", [False, True])
def test_reading_gives_the_deltas_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    if mapped:
        monkeypatch.setattr(patch_module, "_MAPPED_BYTES", 0)
    path = tmp_path / "patch.safetensors"
    size, sha256 = write_patch(path, DELTAS)
    patch = Patch.open(path)
    assert (patch.size, patch.sha256) == (size, sha256)
    assert patch.names == ("a.weight", "b.weight", "ä.weight")
    assert [patch.rank(name) for name in patch.names] == [None, 3, 2]
    assert {patch.shape(name) for name in patch.names} == {(8, 6)}
    for name, delta in patch.deltas().items():
        np.testing.assert_array_equal(workspaces.product(delta), workspaces.product(DELTAS[name]))
    write_patch(tmp_path / "again", patch.deltas())
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_patch_for_another_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    write_patch(path, {"a": workspaces.low_rank(1)})
    patch = Patch.open(path)
    patch.check_shapes({"a": (8, 6), "b": (1,)})
    with pytest.raises(BaseMismatchError, match="the base has it as"):
        patch.check_shapes({"a": (6, 8)})
    with pytest.raises(BaseMismatchError, match="has no such tensor"):
        patch.check_shapes({"b": (8, 6)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["left", "right", "dense"])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path: Path, value: float, where: str) -> None:
    values = {"x.left": np.ones((3, 1), "f4"), "x.right": np.ones((1, 4), "f4"), "y.dense": np.ones((3, 4), "f4")}
    values[next(name for name in values if name.endswith(where))][0, 0] = value
    deltas = {"x": LowRankDelta(values["x.left"], values["x.right"]), "y": DenseDelta(values["y.dense"])}
    with pytest.raises(NumericsError):
        write_patch(tmp_path / "patch.safetensors", deltas)
    assert not list(tmp_path.iterdir())
    save_file(values, tmp_path / "forged.safetensors")
    with pytest.raises(ManifestError, match="NaN or infinity"):
        Patch.open(tmp_path / "forged.safetensors")


def test_an_empty_patch_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        write_patch(tmp_path / "x", {})
    with pytest.raises(ManifestError):
        write_patch(tmp_path / "x", {"a": LowRankDelta(np.zeros((3, 0), "f4"), np.zeros((0, 4), "f4"))})
    assert not list(tmp_path.iterdir())


def f4(*shape: int) -> np.ndarray:
    return np.ones(shape, "f4")


HOSTILE = {
    "left without right": ({"a.left": f4(3, 2)}, "has no right factor"),
    "right without left": ({"a.right": f4(3, 2)}, "has no left factor"),
    "factors that do not fit": ({"a.left": f4(3, 2), "a.right": f4(3, 4)}, "factors that do not fit"),
    "both forms": ({"a.left": f4(3, 2), "a.right": f4(2, 4), "a.dense": f4(3, 4)}, "given twice"),
    "both forms with a longer name": ({"a.dense": f4(3, 4), "a.left": f4(3, 2), "a.right": f4(2, 4)}, "given twice"),
    "another name": ({"a.weight": f4(3, 4)}, "is neither"),
    "no tensor's name": ({".left": f4(3, 2), ".right": f4(2, 3)}, "is neither"),
    "float64": ({"a.dense": np.ones((2, 2))}, "has dtype F64"),
    "half precision": ({"a.dense": np.ones((2, 2), "f2")}, "has dtype F16"),
    "integers": ({"a.dense": np.ones((2, 2), "i4")}, "has dtype I32"),
    "a vector": ({"a.dense": f4(3)}, "is not a matrix"),
    "a cube": ({"a.left": f4(2, 2, 2), "a.right": f4(2, 2)}, "is not a matrix"),
    "rank zero": ({"a.left": f4(3, 0), "a.right": f4(0, 4)}, "is not a matrix"),
    "nothing": ({}, "edits nothing"),
    "an escape in a name": ({"a\x1b[31m.left": f4(3, 2)}, "has no right factor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_patch_is_refused(tmp_path: Path, name: str) -> None:
    tensors, message = HOSTILE[name]
    path = tmp_path / "patch.safetensors"
    save_file(tensors, path)
    with pytest.raises(ManifestError) as caught:
        Patch.open(path)
    assert message in caught.value.message
    assert caught.value.message == printable(caught.value.message)
    assert caught.value.hint


def test_metadata_is_refused(tmp_path: Path) -> None:
    save_file({"a.dense": f4(2, 2)}, tmp_path / "x", {"format": "pt"})
    with pytest.raises(ManifestError, match="carries metadata"):
        Patch.open(tmp_path / "x")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    write_patch(tmp_path / "real", DELTAS)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir()
    import os

    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("link", "is a link"),
        ("folder", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("none", "is missing"),
    ):
        with pytest.raises(ManifestError, match=message):
            Patch.open(tmp_path / name)


def test_a_patch_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    write_patch(path, DELTAS)
    patch = Patch.open(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ManifestError, match="changed while it was read"):
        patch.deltas()


def test_a_header_that_claims_terabytes_is_refused_at_once(tmp_path: Path) -> None:
    header = {"a.dense": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
    raw = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(ManifestError):
        Patch.open(tmp_path / "x")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzzed_patches_end_in_a_patch_or_a_typed_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "patch.safetensors"
    raw = bytearray(save({"a.left": f4(3, 2), "a.right": f4(2, 4), "b.dense": f4(2, 2)}))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(raw)
    try:
        patch = Patch.open(path)
    except ManifestError as error:
        assert error.message == printable(error.message)
    else:
        assert all(delta.is_finite() for delta in patch.deltas().values())
