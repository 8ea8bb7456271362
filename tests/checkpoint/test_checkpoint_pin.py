"""The pin: every hash against hashlib over the plain bytes, and files that are not what they were."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import Counting, make_checkpoint, raw_of
from hypothesis import given, settings
from hypothesis import strategies as st

from reviver.checkpoint import pin as pin_module
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin, TouchedFile, pin_folder, touched
from reviver.errors import CheckpointError, WorkspaceError


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def make_pin(root: Path, **options: Any) -> BasePin:
    make_checkpoint(root, **options)
    return pin_folder(CheckpointFolder.open(root), source="folder", model=str(root))


@pytest.mark.parametrize(("shards", "chunk"), [(1, 8 << 20), (4, 8 << 20), (4, 7)])
def test_every_hash(tmp_path: Path, shards: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_module, "CHUNK_BYTES", chunk)
    tensors = make_checkpoint(tmp_path, shards=shards)
    folder = CheckpointFolder.open(tmp_path)
    progress = Counting()
    pin = pin_folder(folder, source="hub", model="owner/name", revision="abc", progress=progress)
    assert progress.total == progress.done == sum(file.size for file in pin.files)
    assert [file.path for file in pin.files] == folder.files
    for file in pin.files:
        assert file.sha256 == sha256((tmp_path / file.path).read_bytes())
        assert (file.size, file.modified_ns) == (
            (tmp_path / file.path).stat().st_size,
            (tmp_path / file.path).stat().st_mtime_ns,
        )
        assert pin.file(file.path) == file
    assert pin.tensor_sha256 == {name: sha256(raw_of(tensor)) for name, tensor in tensors.items()}
    assert pin.tensors == folder.tensors
    assert (pin.source, pin.model, pin.revision, pin.folder) == ("hub", "owner/name", "abc", str(tmp_path))
    decisive = {
        path: pin.file(path).sha256
        for path in folder.files
        if path.endswith((".safetensors", "index.json", "config.json"))
    }
    text = json.dumps({"files": decisive}, sort_keys=True, separators=(",", ":"))
    assert pin.fingerprint == sha256(text.encode())
    assert touched(pin) == []


def test_the_fingerprint_is_about_weights_and_configuration(tmp_path: Path) -> None:
    first = make_pin(tmp_path / "a")
    second = make_pin(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    folder = CheckpointFolder.open(tmp_path / "b")
    assert pin_folder(folder, source="folder", model="b").fingerprint == first.fingerprint
    (tmp_path / "b" / "config.json").write_text("{}")
    folder = CheckpointFolder.open(tmp_path / "b")
    assert pin_folder(folder, source="folder", model="b").fingerprint != first.fingerprint


def test_json_and_back(tmp_path: Path) -> None:
    pin = make_pin(tmp_path, shards=3)
    name = next(iter(pin.tensors))
    full = dataclasses.replace(
        pin, family="llama", preset="p", layers=(1, 2), edited=(name,), revision=None, extra={"corpus": {"seed": 1}}
    )
    for value in (pin, full):
        again = BasePin.from_json(value.to_json())
        assert again == value and list(again.tensors) == list(value.tensors)
        assert again.to_json() == value.to_json()


def test_touched(tmp_path: Path) -> None:
    pin = make_pin(tmp_path, shards=2)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text('{"longer": "than before, and so another size, surely"}')
    os.utime(tmp_path / pin.tensors["model.empty"].shard, ns=(1, 1))
    assert touched(pin) == [
        TouchedFile(path="config.json", what="size"),
        TouchedFile(path=pin.tensors["model.empty"].shard, what="time"),
        TouchedFile(path="tokenizer.json", what="missing"),
    ]
    gone = dataclasses.replace(pin, folder=str(tmp_path / "nowhere"))
    assert {file.what for file in touched(gone)} == {"missing"} and len(touched(gone)) == len(pin.files)


def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    folder = CheckpointFolder.open(tmp_path)
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        pin_folder(folder, source="folder", model="x")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"`model.safetensors` cannot be read"):
        pin_folder(folder, source="folder", model="x")


def change(*keys: str | int, to: object) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return apply


NAME = "model.layers.0.mlp.down_proj.weight"
DAMAGED = {
    "not an object": lambda value: None,
    "no schema": change("schema", to=None),
    "schema a truth": change("schema", to=True),
    "files an object": change("files", to={}),
    "file a number": change("files", 0, to=3),
    "file climbs": change("files", 0, "path", to="../../etc/passwd"),
    "file absolute": change("files", 0, "path", to="/etc/passwd"),
    "files out of order": change("files", 0, "path", to="zzz"),
    "negative size": change("files", 0, "size", to=-1),
    "size a fraction": change("files", 0, "size", to=1.5),
    "hash too short": change("files", 0, "sha256", to="abc"),
    "hash in capitals": change("files", 0, "sha256", to="A" * 64),
    "time as text": change("files", 0, "modified_ns", to="1"),
    "tensors a list": change("tensors", to=[]),
    "tensor without dtype": change("tensors", NAME, "dtype", to=None),
    "tensor with text as shape": change("tensors", NAME, "shape", to="24"),
    "tensor with negative length": change("tensors", NAME, "shape", to=[-1]),
    "tensor outside its shard": change("tensors", NAME, "end", to=10**12),
    "tensor in no shard": change("tensors", NAME, "shard", to="other.safetensors"),
    "tensor backwards": change("tensors", NAME, "start", to=10**6),
    "fingerprint missing": change("fingerprint", to=None),
    "edited not there": change("edited", to=["ghost"]),
    "edited a number": change("edited", to=[1]),
    "layers negative": change("layers", to=[-1]),
    "revision a number": change("revision", to=1),
    "folder a number": change("folder", to=1),
    "extra a list": change("extra", to=[]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_pin(case: str, tmp_path: Path) -> None:
    value = json.loads(make_pin(tmp_path).to_json())
    DAMAGED[case](value)
    with pytest.raises(WorkspaceError) as caught:
        BasePin.from_json(json.dumps(None if case == "not an object" else value).encode())
    assert "the pin of the base is damaged" in caught.value.message and "\n" not in caught.value.message
    assert "reviver init" in (caught.value.hint or "")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    value = json.loads(make_pin(tmp_path).to_json()) | {"schema": 2, "files": "of another kind"}
    with pytest.raises(WorkspaceError, match="newer reviver"):
        BasePin.from_json(json.dumps(value).encode())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["schema", "files", "tensors", "a"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_fuzzed_pin(raw: bytes) -> None:
    with pytest.raises(WorkspaceError):
        BasePin.from_json(raw)
