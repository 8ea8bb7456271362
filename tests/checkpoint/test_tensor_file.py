"""Files of arrays: the bytes of the library's own writer, and nothing half made."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reviver.checkpoint import tensor_file
from reviver.checkpoint.tensor_file import DTYPES, write_tensor_file
from reviver.errors import ResourceError

ARRAYS = {
    "b": np.arange(12, dtype="f4").reshape(3, 4),
    "a": np.arange(12, dtype="f4").reshape(3, 4).T,
    "wide": np.arange(5, dtype="f8"),
    "count": np.array([7], dtype="i8"),
    "scalar": np.array(2.5, dtype="f8"),
    "nothing": np.zeros((0, 3), dtype="f4"),
    "flag": np.array([True, False, True]),
    "überall": np.ones((2, 2), dtype="f2"),
}


@pytest.mark.parametrize("chunk", [1, 16, 8 * 1024 * 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_of_the_library(
    tmp_path: Path, dtype: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", chunk)
    arrays = {name: np.ascontiguousarray(values.astype(dtype)) for name, values in ARRAYS.items()}
    save_file(arrays, tmp_path / "expected")
    expected = (tmp_path / "expected").read_bytes()
    size, sha256 = write_tensor_file(tmp_path / "written", arrays)
    assert (tmp_path / "written").read_bytes() == expected
    assert (size, sha256) == (len(expected), hashlib.sha256(expected).hexdigest())


def test_any_array_is_read_back(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "x", ARRAYS)
    found = load_file(tmp_path / "x")
    assert found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype and np.array_equal(found[name], values)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensor_file(tmp_path / "x", ARRAYS)
    before = (tmp_path / "x").read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_file, "write_fully", full)
    with pytest.raises(ResourceError, match="no space left"):
        write_tensor_file(tmp_path / "x", {"a": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == before
