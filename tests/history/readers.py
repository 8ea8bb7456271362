"""Every reader of what may come from a stranger, each with a sound sample of what it reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import workspaces

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


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader of bytes, and a sound sample of what it reads."""

    read: Callable[[bytes], object]
    sample: bytes
    lines: bool = False
    """The sample is JSON Lines."""

    def read_or_refuse(self, data: bytes) -> None:
        """Read ``data``, or see that it is refused in printable lines with a hint; any other exception goes through."""
        try:
            self.read(data)
        except ReviverError as error:
            assert error.message and error.hint
            for line in (error.message, error.hint):
                assert line == printable(line) and len(line) < 2000, line


NAMES = (
    "manifest", "facts", "results", "patch", "header", "index", "config", "tags", "operations", "intent", "head", "stamps",
    "pin", "evaluation", "settings", "card", "sums",
)  # fmt: skip


def make_readers(folder: Path) -> dict[str, Reader]:
    """Return every reader by name; what they read is put under an empty folder."""
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
