"""The file primitives that checkpoints stand on: atomic writes, links, JSON that nobody vouches for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from reviver import files
from reviver.errors import ResourceError, UsageError
from reviver.files import LINK_MODES, atomic_file, link_file, parse_json, write_atomic, write_fully


def test_atomic_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        write_fully(file, b"new")
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyError), atomic_file(path) as file:
        write_fully(file, b"half")
        raise KeyError
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_atomic_file_replaces_a_link_and_keeps_what_it_led_to(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"base")
    (tmp_path / "link").symlink_to("base")
    (tmp_path / "hard").hardlink_to(tmp_path / "base")
    for name in ("link", "hard"):
        write_atomic(tmp_path / name, b"mine")
        assert (tmp_path / name).read_bytes() == b"mine" and not (tmp_path / name).is_symlink()
    assert (tmp_path / "base").read_bytes() == b"base"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_the_users(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_errors_of_the_disk_are_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write"):
        write_atomic(tmp_path / "missing" / "a", b"x")


def test_write_fully_goes_on_after_a_short_write() -> None:
    class Short:
        def __init__(self) -> None:
            self.taken = b""

        def write(self, data: memoryview) -> int:
            self.taken += bytes(data[:3])
            return min(3, len(data))

    short = Short()
    write_fully(short, b"0123456789")  # type: ignore[arg-type]
    assert short.taken == b"0123456789"


@pytest.mark.parametrize("mode", ["hardlink", "symlink", "copy", None])
def test_link_file(tmp_path: Path, mode: str | None) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "snapshot").symlink_to("blob")
    (tmp_path / "there").write_bytes(b"old")
    used = link_file(tmp_path / "snapshot", tmp_path / "there", mode)
    assert used == (mode or used) and used in LINK_MODES
    assert (tmp_path / "there").read_bytes() == b"weights"
    same = (tmp_path / "there").stat().st_ino == (tmp_path / "blob").stat().st_ino
    assert same == (used in ("hardlink", "symlink"))
    if used == "symlink":
        assert os.readlink(tmp_path / "there") == str(tmp_path / "blob")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob", "snapshot", "there"]


def test_reflink_or_a_clear_refusal(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    try:
        assert link_file(tmp_path / "a", tmp_path / "b", "reflink") == "reflink"
    except ResourceError as error:
        assert "no reflink can be made" in error.message and "\n" not in error.message
        assert not (tmp_path / "b").exists() and len(list(tmp_path.iterdir())) == 1
    else:
        (tmp_path / "b").write_bytes(b"changed")
        assert (tmp_path / "a").read_bytes() == b"weights"


def test_a_reflink_where_the_disk_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ioctl is stood in for by what it does, so that the path around it runs on any disk."""
    import fcntl

    def clone(descriptor: int, request: int, source: int) -> int:
        assert request == 0x40049409
        os.write(descriptor, os.pread(source, 100, 0))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    (tmp_path / "a").write_bytes(b"weights")
    assert link_file(tmp_path / "a", tmp_path / "b") == "reflink"
    assert (tmp_path / "b").read_bytes() == b"weights"


def test_a_full_disk_is_not_taken_for_a_missing_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, temporary: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setitem(files._LINKERS, "reflink", full)
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(ResourceError, match="no space left"):
        link_file(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError):
        link_file(tmp_path / "a", tmp_path / "b", "magic")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff", "not UTF-8 at byte 0"),
        (b"{", "not JSON: "),
        (b"", "not JSON: "),
        (b"[" * 300_000, "nested too deeply"),
        (b'{"a":1,"a":2}', "'a' stands there twice"),
        (b'{"a":{"b":1,"b":1}}', "'b' stands there twice"),
        (b"[NaN]", "it holds NaN"),
        (b"-Infinity", "it holds -Infinity"),
        (b"9" * 5000, "a number is absurdly long"),
        (b'"\\udfff"', "half of a surrogate pair"),
    ],
)
def test_json_that_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(raw)
    assert "\n" not in str(caught.value)


def test_json_that_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\\ud83d\\ude00"]}') == {"a": [1, 2.5, "\U0001f600"]}
    assert parse_json(b'{"a": 1, "a": Infinity}', lenient=True) == {"a": float("inf")}
    with pytest.raises(ValueError, match="not JSON"):
        parse_json(b"{", lenient=True)
