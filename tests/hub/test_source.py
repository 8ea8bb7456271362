"""Where a base comes from: folders, ids, revisions, the cache, and everything that can refuse."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_fake import WRITER, FakeHub
from huggingface_hub import constants

from reviver.errors import (
    GatedModelError,
    HubError,
    ModelNotFoundError,
    OfflineError,
    ResourceError,
    ReviverError,
    TokenError,
    UnsupportedModelError,
    UsageError,
)
from reviver.hub.connection import Connection
from reviver.hub.source import resolve_source

SHARD = bytes(range(256)) * 512
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": SHARD,
    "model-00002-of-00002.safetensors": SHARD[::-1],
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n",
    "LICENSE": b"MIT",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.pth": b"pickle",
    "model.gguf": b"gguf",
    "onnx/model.onnx": b"onnx",
    "consolidated.safetensors": SHARD,
}
NEEDED = {name for name in FILES if name not in {
    "pytorch_model.bin", "original/consolidated.00.pth", "model.gguf", "onnx/model.onnx", "consolidated.safetensors",
}}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fingerprint(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


class Recorder:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.totals: list[float | None] = []
        self.done = 0.0
        self.lock = threading.Lock()

    @contextmanager
    def task(self, name, *, total=None, unit=""):
        self.totals.append(total)
        yield self

    def advance(self, amount: float = 1) -> None:
        with self.lock:
            self.done += amount

    def note(self, text: str) -> None:
        """Nothing is noted here."""


def test_a_local_folder_wins_and_is_absolute(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = resolve_source("org/name")
    assert (source.kind, source.folder, source.model, source.revision) == (
        "local",
        tmp_path / "org" / "name",
        None,
        None,
    )
    assert resolve_source("./org/name").folder == tmp_path / "org" / "name"
    assert source.requested == "org/name"


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@sha"])
def test_a_hub_id_becomes_a_commit_in_the_cache(hub: FakeHub, reader: Connection, revision):
    repository = hub.add_model("org/name", FILES)
    old = repository.head.oid
    if revision in ("@v1.0", "@sha"):
        repository.tags["v1.0"] = old
        hub.add_model("org/name", {"config.json": b"newer"})
    progress = Recorder()
    text = "org/name" + (revision if revision != "@sha" else f"@{old}")
    source = resolve_source(text, progress=progress, connection=reader)
    assert source.kind == "hub"
    assert source.model == "org/name"
    assert source.revision == old
    assert source.requested == text
    assert source.folder.is_relative_to(reader.cache_folder)
    assert contents(source.folder) == {name: FILES[name] for name in NEEDED}
    assert source.expected_sha256 == {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in NEEDED if name.endswith(".safetensors")
    }
    assert progress.totals == [sum(len(FILES[name]) for name in NEEDED)]
    assert progress.done == progress.totals[0]
    assert hub.writes == []


def test_a_second_call_fetches_nothing_and_leaves_the_cache_alone(hub, reader):
    hub.add_model("org/name", FILES)
    first = resolve_source("org/name", connection=reader)
    before = fingerprint(reader.cache_folder)
    hub.requests.clear()
    second = resolve_source("org/name@main", connection=reader)
    assert (second.folder, second.revision) == (first.folder, first.revision)
    assert fingerprint(reader.cache_folder) == before
    assert not [path for _, path in hub.requests if "/resolve/" in path]
    hub.requests.clear()
    third = resolve_source(f"org/name@{first.revision}", connection=reader)
    assert third.folder == first.folder
    assert hub.requests == [], "a commit that is complete in the cache needs no network"


def test_offline_mode_uses_the_cache(hub, reader, monkeypatch):
    hub.add_model("org/name", FILES)
    online = resolve_source("org/name", connection=reader)
    (reader.cache_folder / "models--org--name" / "refs").mkdir(exist_ok=True)
    (reader.cache_folder / "models--org--name" / "refs" / "main").write_text(str(online.revision))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    for text in ("org/name", f"org/name@{online.revision}"):
        offline = resolve_source(text, connection=reader)
        assert (offline.folder, offline.revision) == (online.folder, online.revision)
    assert hub.requests == []
    (online.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OfflineError, match="org/name"):
        resolve_source("org/name", connection=reader)
    with pytest.raises(OfflineError, match="not complete in the cache, and offline mode is on"):
        resolve_source("org/other", connection=reader)


def test_a_cache_that_others_filled_partly_is_not_taken_for_complete(hub, reader, monkeypatch):
    """Other programs fetch single files, and leave no list of what a commit should hold."""
    commit = hub.add_model("org/name", FILES).head.oid
    snapshot = reader.cache_folder / "models--org--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, lacking in (
        ("config.json", "config.json"),
        ("model.safetensors.index.json", r"model\.safetensors"),
        ("model-00001-of-00002.safetensors", r"model-00001-of-00002\.safetensors"),
        ("model-00002-of-00002.safetensors", r"model-00002-of-00002\.safetensors"),
    ):
        with pytest.raises(OfflineError, match=f"without `{lacking}`"):
            resolve_source(f"org/name@{commit}", connection=reader)
        (snapshot / name).write_bytes(FILES[name])
    assert resolve_source(f"org/name@{commit}", connection=reader).folder == snapshot
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    again = resolve_source(f"org/name@{commit}", connection=reader)
    assert contents(again.folder) == {name: FILES[name] for name in NEEDED}


def check(error: ReviverError) -> None:
    """Every error is one line with one hint, and shows no token."""
    assert error.hint
    for text in (error.message, error.hint):
        assert "\n" not in text and not text.endswith(".")
        assert "hf_" not in text


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("./nothing", ModelNotFoundError, "does not exist"),
        ("/no/such/folder", ModelNotFoundError, "does not exist"),
        ("~/no-such-folder-here", ModelNotFoundError, "does not exist"),
        ("../x@main", ModelNotFoundError, "does not exist"),
        ("a/b/c", ModelNotFoundError, "does not exist"),
        ("", UsageError, "no model"),
        ("a\0b", UsageError, "no model"),
        ("org/na me", UsageError, "not a valid model id"),
        ("org--x/name", UsageError, "not a valid model id"),
        ("@main", UsageError, "not a valid model id"),
        ("org/name@", UsageError, "not a valid revision"),
        ("org/name@a b", UsageError, "not a valid revision"),
        ("https://huggingface.co/org/name", UsageError, "address"),
        ("x" * 5000, UsageError, "not a valid model id"),
        ("org/\x1b[31mred", UsageError, r"\\x1b"),
    ],
)
def test_text_that_names_nothing_never_reaches_the_hub(hub, reader, text, kind, words):
    with pytest.raises(kind, match=words) as caught:
        resolve_source(text, connection=reader)
    check(caught.value)
    assert hub.requests == []


def test_a_file_is_not_a_folder(reader, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve_source(str(tmp_path / "model.safetensors"), connection=reader)


def test_what_the_hub_refuses(hub, reader, tmp_path):
    hub.add_model("org/gated", FILES, gated=True)
    hub.add_model("org/secret", FILES, private=True)
    hub.add_model("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    hub.add_model("org/empty", {"README.md": b""})
    hub.add_model("org/name", FILES)
    cases = {
        "org/gated": (GatedModelError, "gated"),
        "org/secret": (ModelNotFoundError, "private"),
        "org/none": (ModelNotFoundError, "does not exist"),
        "org/name@nope": (ModelNotFoundError, "no revision `nope`"),
        "org/pickled": (UnsupportedModelError, "only pickled weights"),
        "org/empty": (UnsupportedModelError, "no safetensors"),
    }
    for text, (kind, words) in cases.items():
        with pytest.raises(kind, match=words) as caught:
            resolve_source(text, connection=reader)
        check(caught.value)
    with pytest.raises(GatedModelError) as gated:
        resolve_source("org/gated", connection=reader)
    assert f"{hub.url}/org/gated" in str(gated.value.hint) and "hf auth login" in str(gated.value.hint)
    with pytest.raises(TokenError) as caught:
        resolve_source(
            "org/name", connection=Connection(endpoint=hub.url, token="hf_wrongwrongwrong", cache=tmp_path / "c")
        )
    check(caught.value)
    assert resolve_source(
        "org/secret", connection=Connection(endpoint=hub.url, token=WRITER, cache=tmp_path / "c")
    ).model


def test_no_network_and_no_answer(hub, reader, tmp_path):
    nowhere = Connection(endpoint="http://127.0.0.1:9", cache=tmp_path / "cache")
    with pytest.raises(OfflineError, match="cannot be reached") as caught:
        resolve_source("org/name", connection=nowhere)
    check(caught.value)
    hub.add_model("org/name", FILES)
    hub.fail("GET", "/api/models/org/name/revision", None, times=3)
    with pytest.raises(OfflineError):
        resolve_source("org/name", connection=reader)
    hub.failures.clear()
    hub.fail("GET", "/api/models/org/name/revision", 503, times=3)
    with pytest.raises(HubError, match="failure of its own"):
        resolve_source("org/name", connection=reader)


def test_a_download_that_breaks_off_goes_on_later(hub, reader):
    hub.add_model("org/name", FILES)
    hub.fail("GET", "/resolve/.*/model-00002", 400, times=1)
    with pytest.raises(HubError):
        resolve_source("org/name", connection=reader)
    source = resolve_source("org/name", connection=reader)
    assert contents(source.folder) == {name: FILES[name] for name in NEEDED}


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(hub, reader, monkeypatch):
    hub.add_model("org/name", FILES)
    monkeypatch.setattr("reviver.hub.source.free_bytes", lambda path: 1000)
    with pytest.raises(ResourceError, match="1000 B are free") as caught:
        resolve_source("org/name", connection=reader)
    check(caught.value)
    assert not [path for _, path in hub.requests if "/resolve/" in path]
