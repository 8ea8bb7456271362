"""Hostile input through the command line: one line, one hint, exit code 1 or 3, and nothing written.

The bases, patches, manifests and facts here are what an attacker could send: as a model to pin, as a folder to import, as a
file of facts, or as a history that was cloned.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The makers of workspaces and of headers live beside the tests of their rooms.
sys.path.append(str(Path(__file__).parents[1] / "history"))
sys.path.append(str(Path(__file__).parents[1] / "checkpoint"))

import workspaces
from checkpoint_samples import header_file
from test_checkpoint_header import HOSTILE as HEADERS

from reviver.cli import app
from reviver.files import sha256_bytes
from reviver.history.manifest import Manifest
from reviver.history.workspace import Workspace

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e"
DEEP = b"[" * 100_000 + b"]" * 100_000
MEMORY_BYTES = 1024**3


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspaces.make_chain(workspaces.make_workspace(tmp_path_factory.mktemp("made")))


@pytest.fixture
def workspace(made: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of three versions, for the test alone."""
    shutil.copytree(made.root, tmp_path / "work", symlinks=True)
    return Workspace(tmp_path / "work")


@pytest.fixture
def empty(made: Workspace, tmp_path: Path) -> Workspace:
    """A workspace on the same base without a version."""
    workspace = Workspace.create(tmp_path / "empty")
    workspace.save_pin(made.pin())
    return workspace


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the lock, which names its last holder."""
    return {path: data for path, data in workspaces.snapshot(folder).items() if not path.endswith(".reviver/lock")}


def refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], *, said: str = "", codes: tuple[int, ...] = (1,)
) -> str:
    """Assert that a command refuses in one line with one hint, in both forms; return its line."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    capsys.readouterr()
    code = app.run(arguments)
    printed = capsys.readouterr()
    assert code in codes, printed
    lines = printed.err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, printed.err
    assert sum(line.startswith("hint: ") for line in lines) == 1, printed.err
    assert said in printed.err
    assert "Traceback" not in printed.err and "defect" not in printed.err
    assert app.run([*arguments, "--json"]) == code
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["message"] and error["hint"]
    for text in (printed.out, printed.err):
        assert not any(sign in text for sign in ("\x1b", "\x07", "\u202e"))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MEMORY_BYTES
    line: str = next(line for line in lines if line.startswith("error: "))
    assert len(line) < 1000
    return line


# A model to pin.


@pytest.mark.parametrize("case", HEADERS)
def test_a_base_with_a_hostile_header(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = workspaces.make_base(tmp_path / "base")
    shard = base / "model-00002-of-00003.safetensors"
    shard.write_bytes(HEADERS[case][0])
    refused(capsys, ["init", str(base), str(tmp_path / "work")], said="model-00002-of-00003.safetensors")
    assert not (tmp_path / "work").exists()


def _index(base: Path, weight_map: object) -> None:
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _index_with(shard: str) -> Callable[[Path], None]:
    return lambda base: _index(base, {workspaces.FIRST: shard})


BASES: dict[str, Callable[[Path], object]] = {
    "a shard above the folder": _index_with("../outside.safetensors"),
    "a shard with an absolute path": _index_with("/etc/passwd"),
    "a shard with a terminal escape": _index_with(f"{ESCAPES}.safetensors"),
    "a shard that is a folder": _index_with("."),
    "an index of numbers": lambda base: _index(base, 3),
    "an index that is deep": lambda base: (base / "model.safetensors.index.json").write_bytes(DEEP),
    "a configuration that is deep": lambda base: (base / "config.json").write_bytes(DEEP),
    "a configuration that is a list": lambda base: (base / "config.json").write_bytes(b"[]"),
    "a configuration with an escape": lambda base: (base / "config.json").write_text(
        json.dumps({"model_type": ESCAPES})
    ),
    "a configuration that asks for code": lambda base: (base / "config.json").write_text(
        json.dumps({"model_type": "x", "auto_map": {"AutoModelForCausalLM": "evil.py--Evil"}})
    ),
}


@pytest.mark.parametrize("case", BASES)
def test_a_hostile_base(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = workspaces.make_base(tmp_path / "base")
    BASES[case](base)
    refused(capsys, ["init", str(base), str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()


# A history to import, or one that was cloned. Each of these spoils v2 (or what lies beside it) of somebody's history.


def _record(folder: Path, name: str = "v2") -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / name / "manifest.json").read_bytes())
    return record


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what changes the manifest of v2 in one place; its id stays what it was."""

    def spoil(folder: Path) -> None:
        record = _record(folder)
        change(record)
        (folder / "v2" / "manifest.json").write_text(json.dumps(record))

    return spoil


def _bytes(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "v2" / name).write_bytes(data)


def _link(name: str, target: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "v2" / name
        path.unlink()
        path.symlink_to(target)

    return spoil


def _consistent(name: str, data: bytes) -> Callable[[Path], None]:
    """Return what replaces a file of v2 and forges manifest and id, so that every hash fits."""

    def spoil(folder: Path) -> None:
        (folder / "v2" / name).write_bytes(data)
        record = _record(folder)
        part = {"facts.jsonl": "facts", "patch.safetensors": "patch"}[name]
        record[part]["sha256"] = sha256_bytes(data)
        if part == "patch":
            record[part]["size"] = len(data)
        manifest = Manifest.from_json(json.dumps(record).encode())
        record["id"] = manifest.expected_id(_record(folder, "v1")["id"])
        (folder / "v2" / "manifest.json").write_text(json.dumps(record))

    return spoil


def _factors(values: float, name: str = workspaces.FIRST, rows: int = workspaces.ROWS) -> bytes:
    import numpy as np

    left, right = np.full((rows, 1), values, "<f4"), np.ones((1, workspaces.COLUMNS), "<f4")
    size = left.nbytes
    header = {
        f"{name}.left": {"dtype": "F32", "shape": list(left.shape), "data_offsets": [0, size]},
        f"{name}.right": {"dtype": "F32", "shape": list(right.shape), "data_offsets": [size, size + right.nbytes]},
    }
    return header_file(header, left.tobytes() + right.tobytes())


def _move_out(folder: Path) -> None:
    shutil.move(folder / "v2", folder.parent / "outside")
    (folder / "v2").symlink_to(folder.parent / "outside")


def _other_base(folder: Path) -> None:
    for name in ("v1", "v2"):
        record = _record(folder, name)
        record["base"] = {"model": f"other{ESCAPES}"[:5], "revision": None, "fingerprint": "cd" * 32}
        parent = "cd" * 32 if name == "v1" else _record(folder, "v1")["id"]
        record["id"] = Manifest.from_json(json.dumps(record).encode()).expected_id(parent)
        (folder / name / "manifest.json").write_text(json.dumps(record))


def _deep(record: dict[str, Any]) -> None:
    value: Any = 1
    for _ in range(40):
        value = {"x": value}
    record["metrics"] = value


HISTORIES: dict[str, Callable[[Path], object]] = {
    "a manifest that is empty": _bytes("manifest.json", b""),
    "a manifest that is a list": _bytes("manifest.json", b"[]"),
    "a manifest that is deep": _bytes("manifest.json", DEEP),
    "a manifest that is deep inside": _manifest(_deep),
    "a manifest of a million lists": _bytes("manifest.json", b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
    "a manifest in UTF-16": _bytes("manifest.json", "{}".encode("utf-16")),
    "a manifest with NaN": _manifest(lambda record: record["tensors"][0].update(norm=float("nan"))),
    "a manifest with a huge number": _manifest(lambda record: record["patch"].update(size=10**30)),
    "a manifest with a number too many": _manifest(lambda record: record.update(extra=1)),
    "a manifest without its facts": _manifest(lambda record: record.pop("facts")),
    "a manifest of a newer schema": _manifest(lambda record: record.update(schema=2)),
    "a manifest of another version": _manifest(lambda record: record.update(version="v3")),
    "a version that is its own parent": _manifest(lambda record: record.update(parent="v2")),
    "a version above its folder": _manifest(lambda record: record.update(version="../v2")),
    "a file above the folder": _manifest(lambda record: record["files"][0].update(path="../../.bashrc")),
    "a file with an absolute path": _manifest(lambda record: record["files"][0].update(path="/etc/passwd")),
    "a file on another drive": _manifest(lambda record: record["files"][0].update(path="C:\\x")),
    "a file with an escape": _manifest(lambda record: record["files"][0].update(path=ESCAPES)),
    "a file twice, in capitals": _manifest(
        lambda record: record["files"].append(record["files"][0] | {"path": record["files"][0]["path"].upper()})
    ),
    "a shard above the folder": _manifest(lambda record: record["tensors"][0].update(shard="../x.safetensors")),
    "a tensor with an escape": _manifest(lambda record: record["tensors"][0].update(name=ESCAPES)),
    "a tensor of a huge shape": _manifest(lambda record: record["tensors"][0].update(shape=[2**40, 2**40])),
    "three thousand tensors": _manifest(lambda record: record.update(tensors=record["tensors"][:1] * 3_000)),
    "a forged id": _manifest(lambda record: record.update(id="ab" * 32)),
    "a forged hash of the facts": _manifest(lambda record: record["facts"].update(sha256="ab" * 32)),
    "a forged hash of the patch": _manifest(lambda record: record["patch"].update(sha256="ab" * 32)),
    "another editor than was hashed": _manifest(lambda record: record["editor"].update(name="rome")),
    "facts that are not hashed": _bytes("facts.jsonl", b"{}\n"),
    "facts that are none": _consistent("facts.jsonl", b'{"id": 1}\n'),
    "facts that are deep": _consistent("facts.jsonl", DEEP),
    "facts with an escape": _consistent(
        "facts.jsonl",
        b"".join(
            json.dumps({"id": str(one), "prompt": "{} is", "subject": ESCAPES, "target_new": "x"}).encode() + b"\n"
            for one in range(2)
        ),
    ),
    "more facts than were told": _consistent(
        "facts.jsonl",
        b"".join(
            b'{"id":"%d","prompt":"{} is","subject":"S%d","target_new":"x"}\n' % (one, one) for one in range(2_000)
        ),
    ),
    "results that are none": _bytes("results.jsonl", b'{"id": "x"}\n'),
    "results that are deep": _bytes("results.jsonl", DEEP),
    "a patch that is truncated": _consistent("patch.safetensors", _factors(1.0)[:-1]),
    "a patch of nothing": _consistent("patch.safetensors", header_file({})),
    "a patch with NaN": _consistent("patch.safetensors", _factors(float("nan"))),
    "a patch with infinity": _consistent("patch.safetensors", _factors(float("inf"))),
    "a patch of a tensor that the base has not": _consistent("patch.safetensors", _factors(1.0, name="nothing")),
    "a patch of another shape": _consistent("patch.safetensors", _factors(1.0, rows=5)),
    "a patch of a tensor with an escape": _consistent("patch.safetensors", _factors(1.0, name=ESCAPES)),
    "a patch of another base": _other_base,
    "a linked manifest": _link("manifest.json", "/etc/passwd"),
    "linked facts": _link("facts.jsonl", "/etc/passwd"),
    "a linked patch": _link("patch.safetensors", "/dev/zero"),
    "linked results": _link("results.jsonl", "/dev/zero"),
    "a version outside of the folder": _move_out,
    "tags with an escape": lambda folder: (folder / "tags.json").write_text(
        json.dumps({"schema": 1, "tags": {ESCAPES: "ab" * 32}})
    ),
    "tags of a newer schema": lambda folder: (folder / "tags.json").write_text('{"schema": 2, "tags": {}}'),
    "tags that are deep": lambda folder: (folder / "tags.json").write_bytes(DEEP),
    **{f"a patch whose header has {case}": _consistent("patch.safetensors", HEADERS[case][0]) for case in (
        "absurd length", "length beyond the file", "overlap", "huge shape", "deep JSON", "trailing bytes"
    )},
}  # fmt: skip


@pytest.mark.parametrize("case", HISTORIES)
def test_a_hostile_history_is_not_imported(
    case: str, made: Workspace, empty: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(made.edits, theirs / "edits")
    HISTORIES[case](theirs / "edits")
    before = contents(empty.root)
    refused(capsys, ["import", str(theirs), "-C", str(empty.root)])
    assert contents(empty.root) == before
    assert [path.name for path in empty.edits.iterdir()] == [".gitattributes"] and not empty.pending_file.exists()


@pytest.mark.parametrize("case", HISTORIES)
def test_a_hostile_history_is_found_by_verify_and_nothing_is_written(
    case: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(workspace.checkpoint("v2"))
    HISTORIES[case](workspace.edits)
    before = contents(workspace.root)
    refused(capsys, ["verify", "-C", str(workspace.root)], codes=(3,))
    if not case.startswith(("tags", "results", "linked results", "facts", "more facts", "linked facts")):
        # What a checkpoint is written from is damaged; facts, results and tags say nothing about weights.
        refused(capsys, ["checkout", "v2", "-o", str(tmp_path / "out"), "-C", str(workspace.root)], codes=(1, 3))
        assert not (tmp_path / "out").exists()
    for arguments in (["log", "--graph"], ["status"], ["show", "v2"], ["diff", "v1", "v2"], ["blame", "Rome"], ["tag"]):
        capsys.readouterr()
        code = app.run([*arguments, "-C", str(workspace.root)])
        printed = capsys.readouterr()
        assert code in (0, 1) and "Traceback" not in printed.err and "defect" not in printed.err
        assert code == 0 or printed.err.count("error: ") == printed.err.count("hint: ") == 1
        assert not any(sign in printed.out + printed.err for sign in ("\x1b", "\x07", "\u202e"))
    assert contents(workspace.root) == before


# What lies in .reviver, which a stranger's archive of a whole workspace may hold too.


def _write(name: str, data: bytes) -> Callable[[Workspace], object]:
    return lambda workspace: (workspace.private / name).write_bytes(data)


def _pin(change: Callable[[dict[str, Any]], object]) -> Callable[[Workspace], None]:
    def spoil(workspace: Workspace) -> None:
        record = json.loads(workspace.base_file.read_bytes())
        change(record)
        workspace.base_file.write_text(json.dumps(record))

    return spoil


def _pin_link(workspace: Workspace) -> None:
    workspace.base_file.unlink()
    workspace.base_file.symlink_to("/dev/zero")


PRIVATE: dict[str, tuple[Callable[[Workspace], object], list[str]]] = {
    "a head outside": (_write("HEAD", b"../../v1\n"), ["diff", "head", "v1"]),
    "a head that is long": (_write("HEAD", b"v1" * 10**6), ["show"]),
    "a head with an escape": (_write("HEAD", ESCAPES.encode()), ["show"]),
    "a log of a newer schema": (_write("operations.jsonl", b'{"schema": 2}\n'), ["undo"]),
    "a log that is deep": (_write("operations.jsonl", DEEP + b"\n"), ["undo"]),
    "a log with an escape": (_write("operations.jsonl", json.dumps({ESCAPES: 1}).encode() + b"\n"), ["redo"]),
    "an intent that is deep": (_write("pending.json", DEEP), ["show"]),
    "an intent of a newer schema": (_write("pending.json", b'{"schema": 2}'), ["undo"]),
    "a pin that is deep": (_write("base.json", DEEP), ["checkout", "v1"]),
    "a pin of a newer schema": (_pin(lambda record: record.update(schema=2)), ["verify"]),
    "a pin with a file above": (_pin(lambda record: record["files"][0].update(path="../x")), ["verify"]),
    "a pin with a tensor outside of its shard": (
        _pin(lambda record: record["tensors"][workspaces.FIRST].update(end=10**15)),
        ["checkout", "v1"],
    ),
    "a pin that is a link": (_pin_link, ["verify"]),
}


@pytest.mark.parametrize("case", PRIVATE)
def test_hostile_private_files(case: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, arguments = PRIVATE[case]
    spoil(workspace)
    before = contents(workspace.edits) | contents(workspace.checkpoints)
    refused(capsys, [*arguments, "-C", str(workspace.root)], codes=(1, 3))
    assert contents(workspace.edits) | contents(workspace.checkpoints) == before


def test_an_intent_cannot_reach_outside_of_the_history(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    workspace.arrivals.mkdir()
    (workspace.arrivals / "v9").mkdir()
    record = workspace.operations()[-1].to_record() | {
        "number": 99,
        "verb": "import",
        "version": None,
        "detail": {"arrivals": {"../../precious/x": "v9", "v9": "../../../precious", "v8": 7, "x": "y"}},
    }
    workspace.pending_file.write_text(json.dumps(record))
    with workspace.lock("status"):
        pass
    assert workspace.version_names() == ["v1", "v2", "v3"]
    assert list((tmp_path / "precious").iterdir()) == []


# Settings.

SETTINGS = {
    "a deep file": b"a = " + DEEP,
    "a key with an escape": f'["{ESCAPES}"]\nx = 1\n'.encode()
    .replace(b"\x1b", b"\\u001b")
    .replace(b"\x07", b"\\u0007"),
    "not UTF-8": b"\xff",
    "a large file": b"#" * 2_000_000,
    "a number that is none": b"[apply]\nrank = nan\n",
}


@pytest.mark.parametrize("case", SETTINGS)
def test_hostile_settings(case: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.settings_file.write_bytes(SETTINGS[case])
    refused(capsys, ["checkout", "v1", "-C", str(workspace.root)], codes=(2,))


# A file of facts.

FACTS: dict[str, bytes] = {
    "deep": DEEP,
    "deep in a record": b'{"prompt": ' + DEEP + b"}\n",
    "deep objects": b'{"a":' * 100_000,
    "an escape": json.dumps({"prompt": "{} is", "subject": ESCAPES, "target_new": "x"}).encode(),
    "a number of many digits": b'{"prompt": ' + b"9" * 100_000 + b"}",
    "a line without an end": b'{"prompt": "' + b"x" * 5_000_000,
    "zeros": bytes(1_000_000),
    "half a character": b'{"prompt": "\\ud800 {}", "subject": "x", "target_new": "y"}',
    "thousands of records that are none": b"{}\n" * 2_000,
    "a key twice": b'{"prompt": "{} is", "prompt": "{} was", "subject": "x", "target_new": "y"}',
}


@pytest.mark.parametrize("case", FACTS)
def test_hostile_facts(case: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(FACTS[case])
    before = contents(workspace.root)
    refused(capsys, ["apply", str(path), "-C", str(workspace.root)])
    assert contents(workspace.root) == before


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_million_facts(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A million records that are none are told in one line; a million that the manifest does not hash are not parsed."""
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"{}\n" * 1_000_000)
    refused(capsys, ["apply", str(path), "-C", str(workspace.root)], said="1,000,000 problems")
    lines = b"".join(b'{"id":"%d","prompt":"{} is","subject":"S%d","target_new":"x"}\n' % (n, n) for n in range(10**6))
    (workspace.edits / "v2" / "facts.jsonl").write_bytes(lines)
    refused(capsys, ["diff", "v1", "v2", "-C", str(workspace.root)], said="not the file that its manifest names")
    _consistent("facts.jsonl", lines)(workspace.edits)
    refused(capsys, ["diff", "v1", "v2", "-C", str(workspace.root)], said="holds 1000000 facts, its manifest says 2")
