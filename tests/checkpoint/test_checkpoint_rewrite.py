"""Whole checkpoints: the bytes against `save_file` of independently rounded tensors, links by inode, and every way to fail."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_samples import STORAGE, TORCH, Counting, expected_matrix, make_checkpoint, raw_of, sample_delta
from safetensors.torch import load_file, save_file

from reviver import files
from reviver.checkpoint import rewrite, rounding, stream
from reviver.checkpoint.delta import DenseDelta, LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin, pin_folder
from reviver.checkpoint.rewrite import check_base, plan_checkpoint, write_checkpoint
from reviver.errors import BaseMismatchError, NumericsError, ResourceError, UnsupportedModelError, UsageError

DOWN = "model.layers.{}.mlp.down_proj.weight"


def opened(root: Path) -> tuple[CheckpointFolder, BasePin]:
    folder = CheckpointFolder.open(root)
    return folder, pin_folder(folder, source="folder", model=str(root))


def chain_of(versions: int, layers: tuple[int, ...] = (0, 2)) -> dict[str, list[Any]]:
    return {
        DOWN.format(layer): [
            LowRankDelta(*sample_delta(24, 40, 3, seed=10 * version + layer)) for version in range(versions)
        ]
        for layer in layers
    }


def independently(tensors: dict[str, torch.Tensor], chain: dict[str, list[Any]], dtype: str) -> dict[str, torch.Tensor]:
    """Round the edited tensors through Fractions, and leave the others."""
    result = dict(tensors)
    for name, deltas in chain.items():
        bits = np.frombuffer(raw_of(tensors[name]), STORAGE[dtype]).reshape(24, 40)
        rounded = expected_matrix(bits, deltas, dtype)
        result[name] = torch.frombuffer(bytearray(rounded.tobytes()), dtype=TORCH[dtype]).reshape(24, 40)
    return result


def snapshot(root: Path) -> dict[str, tuple[bytes, int, int, int]]:
    """Every file's bytes, inode, mode and time."""
    return {
        path.relative_to(root).as_posix(): (
            path.read_bytes(),
            path.stat().st_ino,
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in root.rglob("*")
        if path.is_file()
    }


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shards", [1, 4])
def test_bytes_are_those_of_save_file(tmp_path: Path, dtype: str, shards: int) -> None:
    tensors = make_checkpoint(tmp_path / "base", dtype=dtype, shards=shards)
    folder, pin = opened(tmp_path / "base")
    before = snapshot(tmp_path / "base")
    chain = chain_of(3)
    written = write_checkpoint(folder, pin, chain, tmp_path / "out", link_mode="copy")
    assert snapshot(tmp_path / "base") == before
    expected = independently(tensors, chain, dtype)
    produced = contents(tmp_path / "out")
    assert sorted(produced) == folder.files == [record.path for record in written.files]
    changed = {folder.tensors[name].shard for name in chain}
    for shard in folder.shards:
        part = {name: expected[name] for name, entry in folder.tensors.items() if entry.shard == shard}
        save_file(part, tmp_path / "expected.safetensors", metadata={"format": "pt"})
        assert produced[shard] == (tmp_path / "expected.safetensors").read_bytes()
        loaded = load_file(tmp_path / "out" / shard)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in part.items())
    for record in written.files:
        raw = produced[record.path]
        assert (record.size, record.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
        assert record.changed == (record.path in changed)
        if not record.changed:
            assert raw == before[record.path][0]
    assert written.tensor_sha256 == {name: hashlib.sha256(raw_of(expected[name])).hexdigest() for name in chain}
    assert written.bytes_written == sum(map(len, produced.values()))
    # Without a destination: the same records, and nothing written.
    hashed = write_checkpoint(folder, pin, chain, None)
    assert (hashed.files, hashed.tensor_sha256) == (written.files, written.tensor_sha256)
    assert hashed.bytes_written == 0 and hashed.link_mode is None


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_chain_is_its_sum_in_any_order(tmp_path: Path, dtype: str) -> None:
    make_checkpoint(tmp_path / "base", dtype=dtype, shards=4)
    folder, pin = opened(tmp_path / "base")
    chain = chain_of(3)
    one_shot = {
        name: [
            LowRankDelta(
                np.concatenate([delta.left for delta in deltas], axis=1),
                np.concatenate([delta.right for delta in deltas]),
            )
        ]
        for name, deltas in chain.items()
    }
    backwards = {name: deltas[::-1] for name, deltas in reversed(chain.items())}
    results = [write_checkpoint(folder, pin, each, None) for each in (chain, one_shot, backwards)]
    assert results[0].files == results[1].files == results[2].files


def test_blocks_and_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    folder, pin = opened(tmp_path / "base")
    dense = DenseDelta(np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32))
    chain: dict[str, list[Any]] = {DOWN.format(1): [dense, *chain_of(1, (1,))[DOWN.format(1)]]}
    expected = write_checkpoint(folder, pin, chain, None)
    monkeypatch.setattr(rounding, "BLOCK_BYTES", 8 * 40 * 5)
    monkeypatch.setattr(rewrite, "CHUNK_BYTES", 97)
    monkeypatch.setattr(stream, "_IN_FLIGHT", 1)
    assert write_checkpoint(folder, pin, chain, tmp_path / "out", link_mode="copy").files == expected.files
    assert hashlib.sha256((tmp_path / "out" / folder.shards[0]).read_bytes()).hexdigest() in {
        record.sha256 for record in expected.files
    }


def test_an_empty_chain_changes_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    folder, pin = opened(tmp_path / "base")
    for chain in ({}, {DOWN.format(0): []}):
        written = write_checkpoint(folder, pin, chain, tmp_path / "out")
        assert not any(record.changed for record in written.files) and written.tensor_sha256 == {}
        assert contents(tmp_path / "out") == contents(tmp_path / "base")
    zero = {DOWN.format(0): [LowRankDelta(np.zeros((24, 1), np.float32), np.ones((1, 40), np.float32))]}
    written = write_checkpoint(folder, pin, zero, None)
    assert not any(record.changed for record in written.files), "a delta of zero leaves every byte"
    assert written.tensor_sha256 == {DOWN.format(0): pin.tensor_sha256[DOWN.format(0)]}


def test_hardlinks_only_for_unchanged_shards(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", shards=4)
    folder, pin = opened(tmp_path / "base")
    chain = chain_of(1, (0,))
    written = write_checkpoint(folder, pin, chain, tmp_path / "out", link_mode="hardlink")
    assert written.link_mode == "hardlink"
    changed = {folder.tensors[name].shard for name in chain}
    for shard in folder.shards:
        same = (tmp_path / "base" / shard).stat().st_ino == (tmp_path / "out" / shard).stat().st_ino
        assert same == (shard not in changed)
    for name in set(folder.files) - set(folder.shards):
        assert (tmp_path / "base" / name).stat().st_ino != (tmp_path / "out" / name).stat().st_ino
    # Writing the next checkpoint over it replaces names, and reaches through none of the links.
    before = snapshot(tmp_path / "base")
    write_checkpoint(folder, pin, chain_of(2, (0, 1, 2, 3)), tmp_path / "out", link_mode="copy")
    after = snapshot(tmp_path / "base")
    assert {name: value[0] for name, value in after.items()} == {name: value[0] for name, value in before.items()}
    assert {name: value[3] for name, value in after.items()} == {name: value[3] for name, value in before.items()}


def test_symlinks_survive_a_move_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "base", shards=4)
    monkeypatch.chdir(tmp_path)
    folder = CheckpointFolder.open(Path("base"))
    pin = pin_folder(folder, source="folder", model="base")
    (tmp_path / "draft").mkdir()
    written = write_checkpoint(folder, pin, chain_of(1, (0,)), Path("draft"), link_mode="symlink")
    (tmp_path / "deeper" / "down").mkdir(parents=True)
    (tmp_path / "draft").rename(tmp_path / "deeper" / "down" / "v1")
    monkeypatch.chdir("/")
    for record in written.files:
        path = tmp_path / "deeper" / "down" / "v1" / record.path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
        if path.is_symlink():
            assert os.readlink(path) == str((tmp_path / "base" / record.path).resolve())
    assert sum((tmp_path / "deeper" / "down" / "v1" / shard).is_symlink() for shard in folder.shards) == 3


def test_a_snapshot_of_the_hub_cache_is_never_written(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "blobs", shards=4)
    snapshot_folder = tmp_path / "snapshots" / "abc"
    snapshot_folder.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        if path.is_file():
            (snapshot_folder / path.name).symlink_to(os.path.relpath(path, snapshot_folder))
    folder, pin = opened(snapshot_folder)
    before = snapshot(tmp_path / "blobs")
    for mode in ("hardlink", "symlink", "copy"):
        out = tmp_path / mode
        write_checkpoint(folder, pin, chain_of(1, (0,)), out, link_mode=mode)
        changed = {folder.tensors[DOWN.format(0)].shard}
        for name in folder.files:
            path = out / name
            assert path.is_symlink() == (mode == "symlink" and name in folder.shards and name not in changed)
            if mode == "hardlink" and name in folder.shards and name not in changed:
                assert path.stat().st_ino == (tmp_path / "blobs" / name).stat().st_ino
    assert {name: (value[0], value[3]) for name, value in snapshot(tmp_path / "blobs").items()} == {
        name: (value[0], value[3]) for name, value in before.items()
    }


def test_permissions_are_normal(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    for path in (tmp_path / "base").rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    (tmp_path / "base").chmod(0o500)
    folder, pin = opened(tmp_path / "base")
    mask = os.umask(0o027)
    try:
        write_checkpoint(folder, pin, chain_of(1), tmp_path / "out", link_mode="copy")
    finally:
        os.umask(mask)
        for path in (tmp_path / "base", tmp_path / "base" / "docs"):
            path.chmod(0o700)
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_progress_is_told_of_every_byte(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", shards=4)
    folder, pin = opened(tmp_path / "base")
    progress = Counting()
    written = write_checkpoint(folder, pin, chain_of(1), tmp_path / "out", link_mode="hardlink", progress=progress)
    assert progress.done == progress.total == written.bytes_written
    plan = plan_checkpoint(folder, pin, chain_of(1))
    assert plan.bytes_rewritten == written.bytes_written
    assert set(plan.changed_shards) | set(plan.linked_shards) == set(folder.shards)
    assert plan.bytes_rewritten + plan.bytes_linked == sum(file.size for file in pin.files)


def test_the_first_mode_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "base", shards=4)
    folder, pin = opened(tmp_path / "base")

    def refuse(source: Path, temporary: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    for mode, following in zip(files.LINK_MODES, files.LINK_MODES[1:], strict=False):
        monkeypatch.setitem(files._LINKERS, mode, refuse)
        written = write_checkpoint(folder, pin, chain_of(1, (0,)), tmp_path / following)
        assert written.link_mode == following
        with pytest.raises(ResourceError, match=f"no {mode} can be made") as caught:
            write_checkpoint(folder, pin, chain_of(1, (0,)), tmp_path / "forced", link_mode=mode)
        assert "link-mode" in (caught.value.hint or "")
        assert not list((tmp_path / "forced").rglob("*.partial"))
    with pytest.raises(UsageError, match="unknown link mode"):
        write_checkpoint(folder, pin, {}, tmp_path / "forced", link_mode="teleport")


def test_a_chain_for_another_base(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base")
    folder, pin = opened(tmp_path / "base")
    with pytest.raises(UnsupportedModelError, match=r"has no tensor `model\.ghost`"):
        write_checkpoint(folder, pin, {"model.ghost": chain_of(1)[DOWN.format(0)]}, tmp_path / "out")
    with pytest.raises(BaseMismatchError, match=r"\[24, 40\] in the base and \[3, 40\]"):
        write_checkpoint(folder, pin, {DOWN.format(0): [LowRankDelta(*sample_delta(3, 40, 1))]}, tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match="its shape is"):
        write_checkpoint(
            folder, pin, {"model.layers.0.input_layernorm.weight": chain_of(1)[DOWN.format(0)]}, tmp_path / "out"
        )
    other = make_checkpoint(tmp_path / "other", rows=24, columns=41)
    assert other
    with pytest.raises(BaseMismatchError, match="does not lie where it was pinned"):
        plan_checkpoint(CheckpointFolder.open(tmp_path / "other"), pin, chain_of(1))
    assert not (tmp_path / "out").exists()


def test_a_base_that_was_touched(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    folder, pin = opened(tmp_path / "base")
    shard = tmp_path / "base" / folder.tensors[DOWN.format(0)].shard
    os.utime(shard, ns=(1, 1))
    write_checkpoint(folder, pin, chain_of(1), tmp_path / "a")  # Only the time changed: hashed again, and fine.
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(BaseMismatchError, match="was changed since it was pinned") as caught:
        write_checkpoint(folder, pin, chain_of(1), tmp_path / "b")
    assert shard.name in caught.value.message and caught.value.hint
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(BaseMismatchError, match=r"is gone|was changed"):
        check_base(pin)
    with pytest.raises(BaseMismatchError, match="the base is no longer at"):
        check_base(dataclasses.replace(pin, folder=str(tmp_path / "nowhere")))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("target", ["edited", "copied", "linked by copy"])
def test_a_base_whose_bytes_changed_under_the_same_time(tmp_path: Path, target: str) -> None:
    make_checkpoint(tmp_path / "base", shards=4)
    folder, pin = opened(tmp_path / "base")
    chain = chain_of(1, (0,))
    edited = folder.tensors[DOWN.format(0)]
    if target == "edited":
        path, place = tmp_path / "base" / edited.shard, edited.start + 5
    elif target == "copied":
        path, place = tmp_path / "base" / "tokenizer.json", 3
    else:
        path, place = tmp_path / "base" / next(shard for shard in folder.shards if shard != edited.shard), 300
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BaseMismatchError):
        write_checkpoint(folder, pin, chain, tmp_path / "out", link_mode="copy")
    assert path.name not in contents(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_base_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    folder, pin = opened(tmp_path / "base")
    real = rewrite._carry_over

    def meanwhile(root: Path, *rest: Any) -> str:
        (root / folder.tensors[DOWN.format(0)].shard).write_bytes(b"another")
        return real(root, *rest)

    monkeypatch.setattr(rewrite, "_carry_over", meanwhile)
    with pytest.raises(BaseMismatchError, match="was changed since it was pinned"):
        write_checkpoint(folder, pin, chain_of(1, (0,)), tmp_path / "out")


def test_the_destination_is_never_the_base(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base")
    folder, pin = opened(tmp_path / "base")
    before = snapshot(tmp_path / "base")
    (tmp_path / "alias").symlink_to(tmp_path / "base")
    for destination in ("base", "base/inside", "alias", "alias/deep/down", "base/../base"):
        with pytest.raises(UsageError, match="lies in the base's own folder"):
            write_checkpoint(folder, pin, chain_of(1), tmp_path / destination)
    assert snapshot(tmp_path / "base") == before


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    folder, pin = opened(tmp_path / "base")
    monkeypatch.setattr(rewrite, "free_bytes", lambda path: 1000)
    with pytest.raises(ResourceError, match=r"needs \d+\.\d KiB and the disk that holds .* has 1000 B free") as caught:
        write_checkpoint(folder, pin, chain_of(1), tmp_path / "out")
    assert caught.value.hint and caught.value.facts["free"] == 1000 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS])
def test_the_disk_fills_up_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    folder, pin = opened(tmp_path / "base")
    monkeypatch.setattr(rewrite, "CHUNK_BYTES", 500)
    real, calls = stream.write_fully, iter(range(10**6))

    def fail(file: Any, data: Any) -> None:
        if next(calls) == 3:
            raise OSError(number, os.strerror(number))
        real(file, data)

    monkeypatch.setattr(stream, "write_fully", fail)
    with pytest.raises(ResourceError) as caught:
        write_checkpoint(folder, pin, chain_of(1), tmp_path / "out")
    assert caught.value.hint and "\n" not in caught.value.message
    assert contents(tmp_path / "out") == {}, "no file under its name, and no partial one"


def test_a_result_that_overflows_leaves_no_file(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", dtype="F16")
    folder, pin = opened(tmp_path / "base")
    huge = LowRankDelta(np.full((24, 1), 1e4, np.float32), np.full((1, 40), 1e4, np.float32))
    with pytest.raises(
        NumericsError, match=r"tensor `model.layers.1.mlp.down_proj.weight` overflows F16 at row 0, column 0"
    ):
        write_checkpoint(folder, pin, {DOWN.format(1): [huge]}, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base")
    folder, pin = opened(tmp_path / "base")
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="cannot write to"):
        write_checkpoint(folder, pin, chain_of(1), tmp_path / "out")


def test_a_file_in_place_of_the_destination(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base")
    folder, pin = opened(tmp_path / "base")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ResourceError):
        write_checkpoint(folder, pin, chain_of(1), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from reviver.checkpoint import rewrite, stream
from reviver.checkpoint.delta import LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
root, out, pin, factors = map(Path, sys.argv[1:])
rewrite.CHUNK_BYTES = 200
real = stream.write_fully
def slowly(file, data):
    time.sleep(0.004)
    real(file, data)
stream.write_fully = slowly
arrays = np.load(factors)
names = sorted({key.rpartition(".")[0] for key in arrays})
chain = {name: [LowRankDelta(arrays[name + ".left"], arrays[name + ".right"])] for name in names}
folder, pin = CheckpointFolder.open(root), BasePin.from_json(pin.read_bytes())
print("begin", flush=True)
rewrite.write_checkpoint(folder, pin, chain, out, link_mode="copy")
"""


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.2])
def test_killed_in_the_middle_leaves_whole_files_and_partial_ones(tmp_path: Path, moment: float) -> None:
    make_checkpoint(tmp_path / "base", shards=4)
    folder, pin = opened(tmp_path / "base")
    before = contents(tmp_path / "base")
    chain = chain_of(1, (0, 1, 2))
    expected = {record.path: record.sha256 for record in write_checkpoint(folder, pin, chain, None).files}
    out = tmp_path / "out"
    (tmp_path / "pin.json").write_bytes(pin.to_json())
    np.savez(
        tmp_path / "factors.npz",
        **{f"{name}.{side}": getattr(deltas[0], side) for name, deltas in chain.items() for side in ("left", "right")},
    )
    arguments = [tmp_path / "base", out, tmp_path / "pin.json", tmp_path / "factors.npz"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begin\n"
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left_behind = contents(out) if out.exists() else {}
    for path, raw in left_behind.items():
        name = Path(path).name
        if not (name.startswith(".") and name.endswith(".partial")):
            assert hashlib.sha256(raw).hexdigest() == expected[path]
    assert len([path for path in left_behind if path.endswith(".partial")]) <= 1
    assert contents(tmp_path / "base") == before
    again = write_checkpoint(folder, pin, chain, out, link_mode="copy")
    assert {record.path: record.sha256 for record in again.files} == expected


def test_interrupted_by_the_keyboard_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "base", shards=2)
    folder, pin = opened(tmp_path / "base")

    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(rewrite, "tensor_chunks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(folder, pin, chain_of(1), tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_checkpoint_made_by_others(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip("needs ../shared/models/stories260K beside the repository")
    folder, pin = opened(source)
    name = "model.layers.2.mlp.down_proj.weight"
    rows, columns = folder.tensors[name].shape
    delta = LowRankDelta(*sample_delta(rows, columns, 4))
    write_checkpoint(folder, pin, {name: [delta]}, tmp_path / "out")
    tensors = load_file(source / "model.safetensors")
    bits = np.frombuffer(raw_of(tensors[name]), "<u4").reshape(rows, columns)
    rounded = expected_matrix(bits, [delta], "F32")
    tensors[name] = torch.frombuffer(bytearray(rounded.tobytes()), dtype=torch.float32).reshape(rows, columns)
    save_file(tensors, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == dict(folder.config)
