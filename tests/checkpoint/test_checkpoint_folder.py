"""Checkpoint folders: what is carried, what is left out, what is refused and by which name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import header_file, make_checkpoint, raw_of
from safetensors.torch import save_file

from reviver.checkpoint.folder import INDEX_NAME, CheckpointFolder, quantization_of
from reviver.errors import CheckpointError, UnsupportedModelError

DOWN = "model.layers.2.mlp.down_proj.weight"


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("shards", [1, 4])
def test_a_good_folder(tmp_path: Path, shards: int) -> None:
    tensors = make_checkpoint(tmp_path, shards=shards)
    folder = CheckpointFolder.open(tmp_path)
    assert set(folder.tensors) == set(tensors) and len(folder.shards) == shards
    assert folder.config["model_type"] == "llama"
    expected = {"config.json", "tokenizer.json", "chat_template.jinja", "docs/LICENSE", *folder.shards}
    assert folder.files == sorted(expected | ({INDEX_NAME} if shards > 1 else set())) and folder.left_out == []
    for name, tensor in tensors.items():
        assert folder.read_tensor(name) == raw_of(tensor)
    assert folder.read_rows(DOWN, 3, 7) == raw_of(tensors[DOWN][3:7])
    assert folder.read_rows("model.layers.0.input_layernorm.weight", 2, 4) == raw_of(
        tensors["model.layers.0.input_layernorm.weight"][2:4]
    )
    assert folder.read_rows("model.empty", 0, 0) == b""
    with pytest.raises(ValueError, match="no rows"):
        folder.read_rows(DOWN, 3, 25)
    # The order of the table is that of the bytes.
    places = [(entry.shard, entry.start) for entry in folder.tensors.values()]
    assert places == sorted(places)


def test_what_is_left_out(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    others = [
        "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors", "model.fp16.safetensors",
        "flax_model.msgpack", "tf_model.h5", "ggml.gguf", "x.ONNX", "original/consolidated.00.pth",
        "docs/adapter.safetensors", ".gitattributes", ".cache/huggingface/x.json", "rust_model.ot",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "linked").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "docs" / "deep").mkdir()
    (tmp_path / "docs" / "deep" / "notes.txt").write_text("carried")
    folder = CheckpointFolder.open(tmp_path)
    assert set(folder.left_out) == {*others, ".cache/", "linked/", "pipe"} - {".cache/huggingface/x.json"}
    assert "docs/deep/notes.txt" in folder.files
    assert not set(folder.files) & set(folder.left_out)


def test_a_hub_snapshot_of_links(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in (tmp_path / "blobs").iterdir():
        if path.is_file():
            (snapshot / path.name).symlink_to(f"../blobs/{path.name}")
    folder = CheckpointFolder.open(snapshot)
    assert "model.safetensors" in folder.files and len(folder.read_tensor(DOWN)) == 24 * 40 * 2
    (tmp_path / "blobs" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"`tokenizer.json` is a link to a file that is gone"):
        CheckpointFolder.open(snapshot)


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def write(name: str, raw: bytes) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(raw) and None


def remap(tensor: str, shard: object) -> Callable[[Path], None]:
    return lambda root: edit_json(root / INDEX_NAME, lambda index: index["weight_map"].__setitem__(tensor, shard))


def forget(root: Path) -> None:
    edit_json(root / INDEX_NAME, lambda index: index["weight_map"].pop(DOWN))


def double(root: Path) -> None:
    # The same tensor in a second shard.
    save_file({DOWN: torch.zeros(2, 2)}, root / "extra.safetensors")
    remap("model.other", "extra.safetensors")(root)


FIRST = "model-00001-of-00004.safetensors"
DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (remove("config.json"), "holds no `config.json`"),
    "configuration not JSON": (write("config.json", b"{"), "`config.json` is not JSON"),
    "configuration a list": (write("config.json", b"[]"), "`config.json` is not a JSON object"),
    "configuration not UTF-8": (write("config.json", b'{"a":"\xff"}'), "`config.json` is not UTF-8"),
    "configuration deep": (write("config.json", b"[" * 200_000), "`config.json` is not JSON"),
    "no weights": (remove(INDEX_NAME), "holds neither `model.safetensors` nor"),
    "index not JSON": (write(INDEX_NAME, b"nonsense"), "index.json` is not JSON"),
    "index a list": (write(INDEX_NAME, b"[1]"), "is not a JSON object"),
    "index without map": (write(INDEX_NAME, b'{"metadata":{}}'), "has no `weight_map`"),
    "index with empty map": (write(INDEX_NAME, b'{"weight_map":{}}'), "has no `weight_map`"),
    "index with a list as map": (write(INDEX_NAME, b'{"weight_map":["a"]}'), "has no `weight_map`"),
    "index with a key twice": (write(INDEX_NAME, b'{"weight_map":{"a":"x","a":"y"}}'), "'a' stands there twice"),
    "shard missing": (remove(FIRST), f"names `{FIRST}`, which is not there"),
    "shard climbs": (remap(DOWN, "../evil.safetensors"), f"gives tensor `{DOWN}` an unsafe path"),
    "shard absolute": (remap(DOWN, "/etc/passwd"), "an unsafe path"),
    "shard a number": (remap(DOWN, 7), "an unsafe path"),
    "shard a list": (remap(DOWN, ["x"]), "an unsafe path"),
    "shard with escape": (remap(DOWN, "\x1b[2J.safetensors"), "an unsafe path"),
    "shard of another format": (remap(DOWN, "config.json"), "into `config.json`, no safetensors file"),
    "tensor in another shard": (remap(DOWN, FIRST), f"tensor `{DOWN}` is in"),
    "tensor not in the index": (forget, "and `model.safetensors.index.json` does not say so"),
    "tensor not in the shard": (
        remap("model.ghost", FIRST),
        f"puts tensor `model.ghost` into `{FIRST}`, which does not hold it",
    ),
    "tensor in two shards": (double, f"tensor `{DOWN}` is"),
    "both layouts": (write("model.safetensors", header_file({})), "loaders differ in which they take"),
    "shard truncated": (write(FIRST, b"12345"), f"`{FIRST}` is not a whole safetensors file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_folder(case: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, shards=4)
    damage, expected = DAMAGED[case]
    damage(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        CheckpointFolder.open(tmp_path)
    assert expected in caught.value.message
    assert "\n" not in caught.value.message and "\x1b" not in caught.value.message and caught.value.hint


def test_hints_for_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        CheckpointFolder.open(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{}")
    for name, hint in (
        ("x.gguf", "GGUF"),
        ("pytorch_model.bin", "convert the weights"),
        ("adapter_config.json", "adapter"),
    ):
        (tmp_path / name).write_text("{}")
        with pytest.raises(CheckpointError) as caught:
            CheckpointFolder.open(tmp_path)
        assert hint in (caught.value.hint or "")


def test_an_index_of_one_file_and_odd_configurations_are_fine(tmp_path: Path) -> None:
    tensors = make_checkpoint(tmp_path)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "a": 1, "a": 2}')
    folder = CheckpointFolder.open(tmp_path)
    assert folder.shards == ["model.safetensors"] and INDEX_NAME in folder.files


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    folder = CheckpointFolder.open(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="became shorter"):
        folder.read_tensor(DOWN)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        folder.read_tensor(DOWN)


def editable(tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> CheckpointFolder:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return CheckpointFolder.open(tmp_path)


MATRIX = torch.zeros(4, 6, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "tensor", "config", "expected"),
    [
        ("mlp.down_proj.weight", MATRIX.to(torch.int8), {}, "its dtype is I8"),
        ("mlp.down_proj.weight", MATRIX.to(torch.float8_e4m3fn), {}, "its dtype is F8_E4M3"),
        ("mlp.down_proj.weight", MATRIX.double(), {}, "its dtype is F64"),
        ("mlp.down_proj.weight", MATRIX[0], {}, "its shape is [6]"),
        ("mlp.experts.down_proj", MATRIX[None], {}, "its shape is [1, 4, 6]"),
        ("mlp.down_proj.weight", MATRIX[:0], {}, "its shape is [0, 6]"),
        ("mlp.down_proj.weight", MATRIX, {"quantization_config": {"quant_method": "fp8"}}, "the model is quantised (fp8)"),
        ("mlp.down_proj.weight", MATRIX, {"text_config": {"quantization_config": {}}, "quantization_config": {"bits": 4}},
         "the model is quantised (an unnamed method)"),
        ("model.embed_tokens.weight", MATRIX, {"tie_word_embeddings": True}, "the input and output embeddings share it"),
        ("transformer.wte.weight", MATRIX, {}, "the input and output embeddings share it"),
        ("model.layers.0.mlp.gate_up_proj.weight", MATRIX, {}, "several matrices are fused in it"),
        ("h.0.attn.c_attn.weight", MATRIX, {}, "several matrices are fused in it"),
    ],
)  # fmt: skip
def test_what_cannot_be_edited(
    tmp_path: Path, name: str, tensor: torch.Tensor, config: dict[str, Any], expected: str
) -> None:
    folder = editable(tmp_path, {name: tensor.contiguous()}, config)
    with pytest.raises(UnsupportedModelError) as caught:
        folder.check_editable(name)
    assert expected in caught.value.message and f"`{name}`" in caught.value.message and caught.value.hint


def test_what_can_be_edited(tmp_path: Path) -> None:
    names = ["a.mlp.down_proj.weight", "h.0.mlp.c_proj.weight", "model.embed_tokens.weight"]
    folder = editable(tmp_path, {name: MATRIX.clone() for name in names}, {"tie_word_embeddings": False})
    for name in names:
        assert folder.check_editable(name).shape == (4, 6)
    assert quantization_of({"quantization_config": None}) is None


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    folder = CheckpointFolder.open(tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        folder.check_editable("layers.2.mlp.down_proj.weight")
    assert caught.value.message == "the checkpoint has no tensor `layers.2.mlp.down_proj.weight`"
    assert f"`{DOWN}`" in (caught.value.hint or "")
    with pytest.raises(UnsupportedModelError):
        folder.check_editable("\x1b[2J" * 1000)
