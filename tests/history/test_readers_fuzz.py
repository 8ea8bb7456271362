"""Every reader of what may come from a stranger, fed with bytes, broken samples and records with odd values.

Whatever it is given, a reader returns or raises one of our errors, in one printable line with a hint. A small sample runs by
default; `pytest -m long tests/history/test_readers_fuzz.py` feeds each reader for ten minutes and watches time and memory.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import workspaces
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st

from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.header import read_header
from reviver.checkpoint.pin import BasePin
from reviver.errors import ReviverError
from reviver.facts.fact import facts_from_jsonl, facts_to_jsonl
from reviver.facts.search import find_facts
from reviver.history.evaluations import Evaluation
from reviver.history.head import read_head
from reviver.history.intent import read_intent
from reviver.history.ledger import taken_back
from reviver.history.manifest import Manifest
from reviver.history.names import read_tags, write_tags
from reviver.history.operations import read_operations
from reviver.history.patch import Patch
from reviver.history.results import find_results, read_results
from reviver.history.stamps import read_stamps
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.hub.card import read_base_card
from reviver.hub.release import read_sums
from reviver.settings import Settings
from reviver.text import printable

SECONDS = 600
SLOWEST_SECONDS = 20.0
MEMORY_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader of bytes, and a sound sample of what it reads."""

    read: Callable[[bytes], object]
    sample: bytes
    lines: bool = False
    """The sample is JSON Lines."""


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    folder = tmp_path_factory.mktemp("fuzz")
    workspace = workspaces.make_chain(workspaces.make_workspace(folder))
    write_tags(workspace.tags_file, {"good": workspace.version("v1").id})
    v2 = workspace.edits / "v2"
    scratch = Workspace.create(folder / "scratch")
    evaluation = Evaluation(
        suite="facts",
        version="v2",
        version_id=workspace.version("v2").id,
        created="2026-01-31T12:00:00Z",
        metrics={"efficacy": 1.0},
        settings={"files": []},
        environment={},
    )
    base = folder / "base"
    copy = folder / "copy"
    shutil.copytree(base, copy)

    def at(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def read_bytes(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return read_bytes

    def read_version(data: bytes) -> object:
        manifest = Manifest.from_json(data)
        assert Manifest.from_json(manifest.to_json()) == manifest
        version = Version(name=manifest.version, number=manifest.number, folder=v2, manifest=manifest)
        return taken_back(version)

    def read_facts(data: bytes) -> object:
        found = find_facts(data, lambda subject, prompt: True, count=data.count(b"\n"), name="facts.jsonl")
        facts = facts_from_jsonl(data)
        assert facts_from_jsonl(facts_to_jsonl(facts)) == facts and len(found) <= len(facts)
        return facts

    def read_measured(path: Path) -> object:
        return find_results(path, ["x"]), read_results(path)

    def open_with(name: str) -> Callable[[bytes], object]:
        sound = (base / name).read_bytes()

        def read_bytes(data: bytes) -> object:
            (copy / name).write_bytes(data)
            try:
                return CheckpointFolder.open(copy)
            finally:
                (copy / name).write_bytes(sound)

        return read_bytes

    def sample(path: Path) -> bytes:
        return path.read_bytes()

    index = "model.safetensors.index.json"
    shard = "model-00002-of-00003.safetensors"
    record = workspace.operations()[-1].to_record()
    return {
        "manifest": Reader(read_version, sample(v2 / "manifest.json")),
        "facts": Reader(read_facts, sample(v2 / "facts.jsonl"), lines=True),
        "results": Reader(at(folder / "results.jsonl", read_measured), sample(v2 / "results.jsonl"), lines=True),
        "patch": Reader(at(folder / "patch.safetensors", Patch.open), sample(v2 / "patch.safetensors")),
        "header": Reader(at(folder / "x.safetensors", lambda path: read_header(path, "x")), sample(base / shard)),
        "index": Reader(open_with(index), sample(base / index)),
        "config": Reader(open_with("config.json"), sample(base / "config.json")),
        "tags": Reader(at(folder / "tags.json", read_tags), sample(workspace.tags_file)),
        "operations": Reader(at(folder / "operations.jsonl", read_operations), sample(workspace.operations_file), True),
        "intent": Reader(at(scratch.pending_file, lambda _: read_intent(scratch)), json.dumps(record).encode()),
        "head": Reader(at(scratch.head_file, lambda _: read_head(scratch)), sample(workspace.head_file)),
        "stamps": Reader(
            at(scratch.private / "v1.json", lambda path: read_stamps(path.parent, "v1")),
            sample(workspace.stamps / "v1.json"),
        ),
        "pin": Reader(BasePin.from_json, sample(workspace.base_file)),
        "evaluation": Reader(lambda data: Evaluation.from_json(data, "evaluations/facts.json"), evaluation.to_json()),
        "settings": Reader(
            at(scratch.settings_file, lambda path: Settings.load(path.parent, {})), Settings.default_toml().encode()
        ),
        "card": Reader(
            lambda data: read_base_card(data.decode("utf-8", "replace")),
            b"---\nlicense: mit\ntags: [a, b]\nlanguage:\n- en\n---\n# Model\n",
        ),
        "sums": Reader(read_sums, b"ab" * 32 + b"  model.safetensors\n"),
    }


NAMES = (
    "manifest", "facts", "results", "patch", "header", "index", "config", "tags", "operations", "intent", "head", "stamps",
    "pin", "evaluation", "settings", "card", "sums",
)  # fmt: skip

_ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**31, 2**63 - 1, 2**63, 10**400, 1e308, -1e-320, "", " ", "x", "v1", "v0", "head",
    "../x", "/etc/passwd", "C:\\x", "a\x00b", "\x1b[2J\u202e", "\ud800", "\u2028", "é" * 2000, "x" * 70_000, "ab" * 32,
    [], {}, [[]], [None], {"": None}, {"schema": 1}, {"schema": 2}, {"x": {"y": [1, {"z": "w"}]}},
]  # fmt: skip


_PIECES = (b"", b"\x00", b"\xff", b"{", b"}", b"[", b'"', b"\\", b"\n", b"0", b"-", b"e9999", b",", b":")


def _odd(chance: random.Random) -> Any:
    if chance.random() < 0.05:
        value: Any = chance.choice(_ODD)
        for _ in range(chance.choice((5, 40, 2000))):
            value = [value] if chance.random() < 0.5 else {"x": value}
        return value
    return chance.choice(_ODD)


def _changed(value: Any, chance: random.Random) -> Any:
    """Return a JSON value that differs in one place: something odd, something missing, or something twice."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        action = chance.random()
        if action < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if action < 0.2:
            return {**value, str(_odd(chance))[:100]: _odd(chance)}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        action = chance.random()
        if action < 0.15:
            return value[:place] + value[place + 1 :]
        if action < 0.3:
            return value + [value[place]] * chance.choice((1, 3, 1000))
        return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    return _odd(chance)


def _changed_record(reader: Reader, chance: random.Random) -> bytes:
    if not reader.lines and not reader.sample.startswith(b"{"):
        return _spliced(reader.sample, chance)
    texts = reader.sample.splitlines() if reader.lines else [reader.sample]
    place = chance.randrange(len(texts))
    record = json.loads(texts[place])
    for _ in range(chance.choice((1, 1, 2, 4))):
        record = _changed(record, chance)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        texts[place] = json.dumps(record).encode()
    finally:
        sys.setrecursionlimit(limit)
    return b"\n".join([*texts, b""]) if reader.lines else texts[0]


def _spliced(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with some exchanged, cut out, put in or doubled."""
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place, length = chance.randrange(len(data) + 1), chance.choice((0, 1, 1, 4, 100, 10_000))
        piece = chance.choice((*_PIECES, data[place : place + 50]))
        data = data[:place] + piece + data[place + length :]
    return data


def inputs(reader: Reader) -> st.SearchStrategy[bytes]:
    chances = st.randoms(use_true_random=False)
    return st.one_of(
        st.binary(max_size=200),
        chances.map(lambda chance: _spliced(reader.sample, chance)),
        chances.map(lambda chance: _changed_record(reader, chance)),
        chances.map(lambda chance: _changed_record(reader, chance)),
    )


def read_or_refuse(reader: Reader, data: bytes) -> None:
    try:
        reader.read(data)
    except ReviverError as error:
        assert error.message and error.hint
        for line in (error.message, error.hint):
            assert line == printable(line) and len(line) < 2000, line


@pytest.mark.parametrize("name", NAMES)
def test_the_sample_itself_is_read(name: str, readers: dict[str, Reader]) -> None:
    assert set(NAMES) == set(readers)
    readers[name].read(readers[name].sample)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_returns_or_refuses(name: str, readers: dict[str, Reader]) -> None:
    reader = readers[name]

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=inputs(reader))
    @example(data=b"")
    @example(data=b"[" * 100_000)
    @example(data=b"\xff\xfe")
    def feed(data: bytes) -> None:
        read_or_refuse(reader, data)

    feed()


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_holds_for_ten_minutes(name: str, readers: dict[str, Reader]) -> None:
    reader = readers[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest, fed, rounds = 0.0, 0, 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:

        @seed(rounds)
        @settings(
            max_examples=1000,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(data=inputs(reader))
        def feed(data: bytes) -> None:
            nonlocal slowest, fed
            start = time.process_time()
            read_or_refuse(reader, data)
            slowest = max(slowest, time.process_time() - start)
            fed += 1

        feed()
        rounds += 1
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(f"{name}: {fed} inputs, the slowest {slowest:.3f} s, {grown / 1e6:.0f} MB")
    assert slowest < SLOWEST_SECONDS
    assert grown < MEMORY_BYTES
