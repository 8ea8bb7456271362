"""The operation log survives crashes, and is read like anything that a stranger may have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reviver.errors import ManifestError
from reviver.history.operations import Operation, append_operation, read_operations
from reviver.text import printable


def operation(number: int, **changes: object) -> Operation:
    fields = {
        "number": number,
        "verb": "apply",
        "time": "2026-01-31T12:00:00Z",
        "head_before": "v0",
        "head_after": "v1",
        "version": "v1",
        "detail": {"facts": 3},
    }
    return Operation(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "operations.jsonl"
    assert read_operations(path) == []
    done = [operation(1), operation(2, version=None, verb="undo", detail={}), operation(5, detail={"ä": ["\n"]})]
    for one in done:
        append_operation(path, one)
    assert read_operations(path) == done
    lines = path.read_bytes().split(b"\n")
    assert lines[-1] == b"" and len(lines) == 4
    assert all(json.loads(line)["schema"] == 1 for line in lines[:-1])


@pytest.mark.parametrize("kept", [1, 30, 120])
def test_a_torn_last_line_counts_as_never_written(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "operations.jsonl"
    append_operation(path, operation(1))
    append_operation(path, operation(2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + kept])
    assert read_operations(path) == [operation(1)]
    append_operation(path, operation(2))
    assert path.read_bytes() == whole


def test_a_torn_first_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "operations.jsonl"
    path.write_bytes(b"x" * 200_000)
    assert read_operations(path) == []
    append_operation(path, operation(1))
    assert read_operations(path) == [operation(1)]


BAD = {
    "not JSON": b"{\n",
    "an empty line": b"\n",
    "a list": b"[]\n",
    "newer": json.dumps(operation(1).to_record() | {"schema": 2}).encode() + b"\n",
    "unknown key": json.dumps(operation(1).to_record() | {"x": 2}).encode() + b"\n",
    "a head outside": json.dumps(operation(1).to_record() | {"head_after": "../v1"}).encode() + b"\n",
    "a verb with an escape": json.dumps(operation(1).to_record() | {"verb": "\x1b[2J"}).encode() + b"\n",
    "number zero": json.dumps(operation(1).to_record() | {"number": 0}).encode() + b"\n",
    "the same number": 2 * (json.dumps(operation(1).to_record()).encode() + b"\n"),
    "detail is text": json.dumps(operation(1).to_record() | {"detail": "x"}).encode() + b"\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_log_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "operations.jsonl"
    path.write_bytes(BAD[name])
    with pytest.raises(ManifestError, match=r"operations\.jsonl:[12]") as caught:
        read_operations(path)
    assert caught.value.message == printable(caught.value.message)
    assert caught.value.hint


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzzed_logs_end_in_operations_or_a_typed_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "operations.jsonl"
    line = json.dumps(operation(1).to_record()).encode() + b"\n"
    raw = bytearray(line + line.replace(b'"number": 1', b'"number": 2'))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(raw)
    try:
        operations = read_operations(path)
    except ManifestError as error:
        assert error.message == printable(error.message)
    else:
        append_operation(path, operation(9**9))
        assert read_operations(path)[:-1] == operations
