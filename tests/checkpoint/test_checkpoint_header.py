"""Headers, hostile ones above all: each is one CheckpointError of one line, and the reference reader agrees on the good ones."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import safetensors
import torch
from checkpoint_samples import header_file, make_checkpoint
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from reviver.checkpoint.header import DTYPE_BYTES, read_header
from reviver.errors import CheckpointError


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


EIGHT = bytes(8)
DEEP = 200_000

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes are too few"),
    "shorter than the length word": (b"\x01\x00\x00", "3 bytes are too few"),
    "absurd length": (struct.pack("<Q", 2**64 - 1) + b"{}", "more than the format's 100 MB"),
    "length just above the limit": (struct.pack("<Q", 100_000_001) + b"{}", "more than the format's 100 MB"),
    "length beyond the file": (struct.pack("<Q", 1000) + b"{}", "claims 1,000 bytes and the file has 2"),
    "length of zero": (struct.pack("<Q", 0), "does not begin with `{`"),
    "truncated buffer": (header_file({"a": entry()}, bytes(7)), "ends at byte"),
    "not UTF-8": (header_file(b'{"\xff":1}'), "not UTF-8 at byte 2"),
    "not JSON": (header_file(b"{nonsense"), "not JSON"),
    "an array": (header_file(b"[]"), "does not begin with `{`"),
    "white space first": (header_file(b" {}"), "does not begin with `{`"),
    "two documents": (header_file(b"{}{}"), "not JSON"),
    "deep JSON": (header_file(b'{"a":' * DEEP + b"1" + b"}" * DEEP), "nested too deeply"),
    "deep arrays": (header_file(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"), "nested too deeply"),
    "a million objects": (header_file(b'{"a":[' + b"{}," * 600_000 + b"{}]}"), "more than 500,000 times `{`"),
    "a tensor twice": (
        header_file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'),
        "'a' stands there twice",
    ),
    "a field twice": (header_file(b'{"a":{"dtype":"U8","dtype":"I8"}}'), "'dtype' stands there twice"),
    "NaN as an offset": (header_file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[NaN,0]}}'), "it holds NaN"),
    "a number of 5,000 digits": (header_file(b'{"a":' + b"9" * 5000 + b"}"), "a number is absurdly long"),
    "half a surrogate": (header_file(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "surrogate"),
    "a tensor that is a number": (header_file({"a": 1}), "tensor `a` is not described by an object"),
    "a tensor that is null": (header_file({"a": None}), "tensor `a` is not described by an object"),
    "no dtype": (header_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT), "tensor `a` has no dtype"),
    "dtype is a number": (header_file({"a": entry(dtype=32)}, EIGHT), "tensor `a` has no dtype"),
    "dtype is an escape": (header_file({"a": entry(dtype="\x1b[2J" * 20)}, EIGHT), "tensor `a` has no dtype"),
    "no shape": (header_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT), "has a shape that is not"),
    "negative shape": (header_file({"a": entry(shape=[-2])}, EIGHT), "has a shape that is not"),
    "shape of fractions": (header_file({"a": entry(shape=[2.0])}, EIGHT), "has a shape that is not"),
    "shape of truths": (header_file({"a": entry(shape=[True, 2])}, EIGHT), "has a shape that is not"),
    "shape as text": (header_file({"a": entry(shape="2")}, EIGHT), "has a shape that is not"),
    "huge shape": (header_file({"a": entry(shape=[2**62, 2**62])}, EIGHT), "tensor `a` has an absurd shape"),
    "huge shape times zero": (header_file({"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}), "an absurd shape"),
    "many huge lengths": (header_file({"a": entry(shape=[2**60] * 10_000)}, EIGHT), "an absurd shape"),
    "length beyond 64 bits": (header_file({"a": entry(shape=[2**70])}, EIGHT), "has a shape that is not"),
    "no offsets": (header_file({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "has offsets that are not two counts"),
    "three offsets": (header_file({"a": entry(offsets=[0, 8, 8])}, EIGHT), "has offsets that are not two counts"),
    "negative offset": (header_file({"a": entry(offsets=[-8, 0])}, EIGHT), "has offsets that are not two counts"),
    "offsets backwards": (header_file({"a": entry(offsets=[8, 0])}, EIGHT), "tensor `a` ends before it begins"),
    "offset beyond the file": (header_file({"a": entry(shape=[2**40], offsets=[0, 2**42])}, EIGHT), "ends at byte"),
    "size and shape differ": (
        header_file({"a": entry(shape=[3])}, EIGHT),
        "has 8 bytes, and its shape and dtype F32 need 12",
    ),
    "size and dtype differ": (header_file({"a": entry(dtype="F64")}, EIGHT), "dtype F64 need 16"),
    "half a byte": (header_file({"a": entry(dtype="F4", shape=[3], offsets=[0, 1])}, b"1"), "dtype F4 need 2"),
    "overlap": (header_file({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "tensor `b` overlaps"),
    "the same bytes twice": (header_file({"a": entry(), "b": entry()}, EIGHT), "tensor `b` overlaps"),
    "a hole at the start": (
        header_file({"a": entry(offsets=[4, 12])}, bytes(12)),
        "a hole of 4 bytes lies before tensor `a`",
    ),
    "a hole between": (
        header_file({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17)),
        "a hole of 1 bytes lies before",
    ),
    "trailing bytes": (header_file({"a": entry()}, bytes(11)), "3 bytes lie after the last tensor"),
    "bytes and no tensor": (header_file({}, bytes(5)), "5 bytes lie after the last tensor"),
    "metadata is a list": (header_file({"__metadata__": []}), "`__metadata__` is not a map of text to text"),
    "metadata of numbers": (header_file({"__metadata__": {"a": 1}}), "`__metadata__` is not a map of text to text"),
    "metadata nested": (header_file({"__metadata__": {"a": {}}}), "`__metadata__` is not a map of text to text"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header(case: str, tmp_path: Path) -> None:
    raw, expected = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_header(path, "model.safetensors")
    assert expected in caught.value.message
    assert "`model.safetensors`" in caught.value.message
    assert "\n" not in caught.value.message and len(caught.value.message) < 400 and caught.value.hint


@pytest.mark.parametrize("case", sorted(set(HOSTILE) - {"a tensor twice", "a field twice", "white space first"}))
def test_the_reference_reader_refuses_them_too(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[case][0])
    with pytest.raises((safetensors.SafetensorError, OSError, ValueError)), safetensors.safe_open(path, "pt"):
        pass


def test_names_are_shown_safely(tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07" + "x" * 10_000
    path = tmp_path / "s"
    path.write_bytes(header_file({name: 1}))
    with pytest.raises(CheckpointError) as caught:
        read_header(path, "evil\u202e.safetensors")
    assert "\x1b" not in caught.value.message and "\u202e" not in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.facts["tensor"] == name


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match="is not a file"):
            read_header(tmp_path / name, name)
    with pytest.raises(CheckpointError, match="is not there"):
        read_header(tmp_path / "missing", "missing")


def test_a_good_header_says_what_the_reference_reader_says(tmp_path: Path) -> None:
    tensors = make_checkpoint(tmp_path, dtype="F16")
    path = tmp_path / "model.safetensors"
    header = read_header(path, "model.safetensors")
    raw = path.read_bytes()
    assert header.size == len(raw) and header.metadata == {"format": "pt"}
    assert {found.name for found in header.tensors} == set(tensors)
    assert [found.start for found in header.tensors] == sorted(found.start for found in header.tensors)
    with safetensors.safe_open(path, "pt") as reference:
        for found in header.tensors:
            piece = reference.get_slice(found.name)
            assert list(found.shape) == piece.get_shape() and found.dtype == piece.get_dtype()
            stored = raw[found.start : found.end]
            assert stored == bytes(tensors[found.name].contiguous().view(torch.uint8).numpy().tobytes())
            assert found.nbytes == tensors[found.name].numel() * DTYPE_BYTES[found.dtype]
    assert header.tensors[0].start == header.header_bytes


@pytest.mark.parametrize(
    "dtype",
    [
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e8m0fnu",
        "bool",
        "int8",
        "uint16",
        "uint32",
        "uint64",
        "complex64",
        "float64",
    ],
)
def test_every_dtype_is_carried(dtype: str, tmp_path: Path) -> None:
    tensor = torch.zeros(3, 4, dtype=torch.uint8).view(torch.uint8).to(getattr(torch, dtype))
    save_file({"a": tensor, "b": torch.zeros(3)}, tmp_path / "s")
    header = read_header(tmp_path / "s", "s")
    assert {found.name: found.nbytes for found in header.tensors} == {"a": tensor.nbytes, "b": 12}


def test_sub_byte_and_unknown_dtypes_are_carried(tmp_path: Path) -> None:
    table = {
        "four": entry("F4", [2, 8], [0, 8]),
        "six": entry("F6_E2M3", [4], [8, 11]),
        "later": entry("F2_E1M0", [1000], [11, 13]),
        "scalar": entry("F32", [], [13, 17]),
        "empty": entry("F32", [0, 5], [17, 17]),
    }
    (tmp_path / "s").write_bytes(header_file(table, bytes(17)))
    header = read_header(tmp_path / "s", "s")
    assert {found.name: found.nbytes for found in header.tensors} == {
        "four": 8,
        "six": 3,
        "later": 2,
        "scalar": 4,
        "empty": 0,
    }


def test_padding_extra_fields_and_null_metadata_are_fine(tmp_path: Path) -> None:
    raw = json.dumps({"__metadata__": None, "a": {**entry(), "comment": "x"}}).encode() + b"     "
    (tmp_path / "s").write_bytes(header_file(raw, EIGHT))
    assert len(read_header(tmp_path / "s", "s").tensors) == 1
    (tmp_path / "t").write_bytes(header_file({}))
    assert read_header(tmp_path / "t", "t").tensors == ()


good_names = st.text(st.characters(codec="utf-8"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
offsets = st.integers(-2, 40) | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPE_BYTES, "F4", "X"]) | json_values,
        "shape": st.lists(st.integers(0, 4) | offsets, max_size=3) | json_values,
        "data_offsets": st.lists(offsets, min_size=2, max_size=2) | json_values,
    },
)
tables = st.dictionaries(good_names | st.just("__metadata__"), entries | json_values, max_size=4)


def outcome(raw: bytes, path: Path) -> bool:
    path.write_bytes(raw)
    try:
        header = read_header(path, "model.safetensors")
    except CheckpointError as error:
        assert "\n" not in error.message and error.hint
        return False
    position = header.header_bytes
    for found in header.tensors:
        assert found.start == position <= found.end
        position = found.end
    assert position == len(raw)
    return True


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables, buffer=st.binary(max_size=40))
@example(table={"a": entry()}, buffer=EIGHT)
def test_fuzzed_tables(tmp_path: Path, table: object, buffer: bytes) -> None:
    accepted = outcome(header_file(table, buffer), tmp_path / "s")
    unknown = any(isinstance(value, dict) and value.get("dtype") == "X" for value in table.values())  # type: ignore[attr-defined]
    if accepted and not unknown:
        with safetensors.safe_open(tmp_path / "s", "pt") as reference:
            assert set(reference.keys()) == set(table) - {"__metadata__"}  # type: ignore[call-overload]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: struct.pack("<Q", len(tail)) + tail))
def test_fuzzed_bytes(tmp_path: Path, raw: bytes) -> None:
    outcome(raw, tmp_path / "s")


GOOD = save({"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}, {"format": "pt"})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3), st.integers(0, len(GOOD)))
def test_damaged_files(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(GOOD)
    for place, value in changes:
        raw[place] = value
    outcome(bytes(raw), tmp_path / "s")
    outcome(bytes(raw[:cut]), tmp_path / "s")


@pytest.mark.parametrize("filling", [b"[],", b"{},", b"300,", b'"",', b"9", b'"\\u00e9",'])
def test_memory_is_bounded(filling: bytes, tmp_path: Path) -> None:
    raw = b'{"a":[' + filling * (20_000_000 // len(filling)) + b"0]}"
    (tmp_path / "s").write_bytes(header_file(raw))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_header(tmp_path / "s", "s")
        assert tracemalloc.get_traced_memory()[1] < 10 * len(raw)
    finally:
        tracemalloc.stop()
