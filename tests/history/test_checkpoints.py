"""What removing checkpoints frees, counted by another way; and which can be written again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import workspaces
from crashes import killed_at

from reviver.errors import BaseMismatchError
from reviver.history.checkpoints import (
    beyond,
    drop_old_checkpoints,
    freed_bytes,
    obstacles,
    remove_checkpoint,
    written_checkpoints,
)
from reviver.history.workspace import Workspace
from reviver.verbs.checkout import checkout


def used_bytes(folder: Path) -> int:
    """Return the bytes of all different files below a folder."""
    states = [path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({(state.st_dev, state.st_ino): state.st_size for state in states}.values())


@pytest.mark.parametrize("mode", ["hardlink", "symlink", "copy"])
def test_freed_bytes_are_those_that_the_disk_gets_back(chained: Workspace, mode: str) -> None:
    for name in ("v1", "v2", "v3"):
        shutil.rmtree(chained.checkpoint(name))
        checkout(chained.root, name, link_mode=mode)
    for names in (["v1"], ["v2", "v3"]):
        told = freed_bytes(chained.checkpoint(name) for name in names)
        # The base lies beside the workspace: what a checkpoint shares with it is not freed.
        before = used_bytes(chained.root.parent)
        for name in names:
            with chained.lock("gc"):
                remove_checkpoint(chained, name)
        stamps = sum((chained.stamps / f"{name}.json").exists() for name in names)
        assert stamps == 0
        freed = before - used_bytes(chained.root.parent)
        assert freed >= told > 0 and freed - told < 2000, "only the stamps beside the checkpoints go as well"


def test_links_within_what_is_removed_are_freed_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "x").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a" / "x", tmp_path / "b" / "x")
    (tmp_path / "a" / "y").write_bytes(b"y" * 10)
    (tmp_path / "b" / "sub").symlink_to(tmp_path / "c")
    (tmp_path / "c" / "z").write_bytes(b"z" * 100)
    assert freed_bytes([tmp_path / "a"]) == 10
    assert freed_bytes([tmp_path / "b"]) == 0
    assert freed_bytes([tmp_path / "a", tmp_path / "b"]) == 1010
    assert freed_bytes([tmp_path / "nowhere"]) == 0


def test_the_newest_and_the_spared_stay(chained: Workspace) -> None:
    assert written_checkpoints(chained) == ["v1", "v2", "v3"]
    assert beyond(chained, 1, spare="v3") == ["v1", "v2"]
    assert beyond(chained, 2, spare="v1") == ["v2"]
    assert beyond(chained, 0, spare="v1") == ["v2", "v3"]
    assert beyond(chained, 9, spare="v1") == []
    checkout(chained.root, "base")
    assert written_checkpoints(chained) == ["v0", "v1", "v2", "v3"]
    assert beyond(chained, 1, spare="v3") == ["v1", "v2"], "the base's copy is not counted"


def test_what_cannot_be_written_again_is_named_and_stays(chained: Workspace) -> None:
    assert obstacles(chained, ["v1", "v2", "v3"]) == {}
    patch = chained.edits / "v2" / "patch.safetensors"
    patch.write_bytes(patch.read_bytes()[:-1])
    assert list(obstacles(chained, ["v1", "v2", "v3"])) == ["v2"]
    with chained.lock("apply"):
        drop_old_checkpoints(chained, 1, newest="v3")
    assert written_checkpoints(chained) == ["v2", "v3"]
    shutil.rmtree(chained.edits / "v1")
    assert list(obstacles(chained, ["v3"])) == ["v3"]


def test_a_patch_with_one_bit_flipped_keeps_what_stands_on_it(chained: Workspace) -> None:
    patch = chained.edits / "v2" / "patch.safetensors"
    data = bytearray(patch.read_bytes())
    data[-1] ^= 1
    patch.write_bytes(data)
    assert list(obstacles(chained, ["v1", "v2"])) == ["v2"]


def test_with_a_touched_base_nothing_can_be_written_again(chained: Workspace) -> None:
    os.utime(Path(chained.pin().folder) / "config.json", ns=(1, 1))
    with pytest.raises(BaseMismatchError, match="was touched"):
        obstacles(chained, ["v1"])
    with chained.lock("apply"):
        drop_old_checkpoints(chained, 1, newest="v3")
    assert written_checkpoints(chained) == ["v1", "v2", "v3"]


def test_a_removal_killed_at_every_instant_leaves_no_half_checkpoint(chained: Workspace) -> None:
    call = 1
    kept = workspaces.snapshot(chained.checkpoint("v1"))

    def remove() -> None:
        with chained.lock("gc"):
            remove_checkpoint(chained, "v1")

    while killed_at(call, remove):
        folder = chained.checkpoint("v1")
        assert not folder.exists() or workspaces.snapshot(folder) == kept
        with chained.lock("checkout"):
            assert chained.leftovers() == []
        checkout(chained.root, "v1")
        assert workspaces.snapshot(folder) == kept
        call += 1
    assert call > 10
