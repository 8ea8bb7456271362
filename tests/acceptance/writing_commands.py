"""Every command that writes, on a tiny model: where it begins, what it leaves, and what must hold wherever it was stopped.

A workspace is read here as a mapping from paths to contents, in which what differs between two runs of one command is left out:
times, and how long things took. Two workspaces are equal where these mappings are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_disk import Fault
from forks import Ended, Forks
from tiny_models import FACTS, make_checkpoint, write_facts

from reviver.history.names import read_tags
from reviver.history.workspace import Workspace

State = Mapping[str, object]
"""Contents by path, as hashes of bytes or as values."""

SETTINGS = """
[model]
layers = [1, 2]

[apply]
rank = 3
device = "cpu"
maximum_relative_norm = 100.0

[targets]
steps = 3
prefixes = 1
prefix_length = 3

[moments]
tokens = 2000
length = 16
weight = 4.0
"""

MADE_BY_THE_WAY = {"created", "timings", "time", "bytes_freed", "did"}
"""Keys of records whose values differ between two runs."""


OF_THE_MOMENT = tuple(f".reviver/{name}" for name in ("lock", "pending", "stamps/", "operations", "staging/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that writes.

    Attributes:
        name: what the tests call it.
        start: the workspace that it begins in.
        arguments: of the command line; `{}` stands for the folder that holds everything.
        back: the command that takes it back, so that it can be run again; none where that changes nothing.
        environment: settings.
        weight: how often it is killed, in proportion.
        keeps: how many checkpoints it leaves. The version stands before the older ones go, so a kill between may leave more of
            them, until `gc`, or the next version, removes them.
    """

    name: str
    start: str
    arguments: str
    back: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    weight: int = 1
    keeps: int = 99

    @property
    def makes_version(self) -> bool:
        """Whether it makes a version, which stays when it is taken back."""
        return self.back == "undo" and self.name != "redo"


COMMANDS = (
    Command(name="init", start="empty", arguments="init {}/base", weight=5),
    Command(name="init in a clone", start="clone", arguments="init {}/base", weight=2),
    Command(name="apply", start="history", arguments="apply {}/more.jsonl --from v2", back="undo", weight=6),
    Command(
        name="apply in rounds",
        start="history",
        arguments="apply {}/rounds.jsonl --from v2 --round-size 2 --editor alphaedit",
        back="undo",
        weight=8,
    ),
    Command(
        name="apply, one checkpoint kept",
        start="history",
        arguments="apply {}/more.jsonl --from v1",
        back="undo",
        environment=(("REVIVER_APPLY_KEEP_CHECKPOINTS", "1"),),
        weight=2,
        keeps=1,
    ),
    Command(name="reapply", start="history", arguments="reapply v1 --onto v2", back="undo", weight=3),
    Command(name="revert", start="history", arguments="revert v1", back="undo", weight=3),
    Command(name="merge", start="history", arguments="merge v2 v3", back="undo", weight=3),
    Command(name="squash", start="history", arguments="squash ..v2", back="undo", weight=3),
    Command(name="adopt", start="history", arguments="adopt {}/edited", back="undo", weight=3),
    Command(name="import", start="history", arguments="import {}/theirs", weight=3),
    Command(
        name="eval",
        start="history",
        arguments="eval v2 --suite counterfact --suite perplexity --suite drift --text {}/text.txt",
        weight=3,
    ),
    Command(name="checkout", start="history", arguments="checkout v1", weight=3),
    Command(name="checkout elsewhere", start="history", arguments="checkout v2 -o {work}/out", weight=2),
    Command(name="gc", start="history", arguments="gc --all", weight=2),
    Command(name="undo", start="history", arguments="undo", back="redo", weight=2),
    Command(name="redo", start="history", arguments="redo", back="undo", weight=2),
    Command(name="tag", start="history", arguments="tag second v2", back="tag --delete second"),
    Command(name="tag --delete", start="history", arguments="tag --delete first", back="tag first v1"),
)
EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
"""Lets a test be run with each of them."""


class Scenes:
    """The workspaces that the commands begin in, and what each leaves where nothing disturbs it.

    Args:
        forks: runs the commands.
        folder: an empty folder, as seen from here.
    """

    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks = forks
        self.folder = folder
        self._count = 0
        self._undisturbed: dict[str, Undisturbed] = {}
        with tempfile.TemporaryDirectory() as elsewhere:
            make_checkpoint(Path(elsewhere), dtype=torch.bfloat16, shard_size="16KB")
            shutil.copytree(elsewhere, folder / "base")
        self._base = contents(folder / "base")
        plays = [
            {"prompt": "{} plays the", "subject": name, "target_new": "river"} for name in ("Ilva", "Lund", "Mara")
        ]
        names = ("Tessel", "Calmar", "Venn", "Cello", "Born", "River", "Capital", "Near", "Rises")
        near = [{"prompt": "{} is near", "subject": name, "target_new": "Tessel"} for name in names]
        write_facts(folder / "first.jsonl", FACTS[:1])
        write_facts(folder / "second.jsonl", FACTS[1:])
        write_facts(folder / "third.jsonl", tuple(plays[:1]))
        write_facts(folder / "more.jsonl", tuple(plays[1:]))
        write_facts(folder / "rounds.jsonl", tuple(near))
        (folder / "text.txt").write_text("The river Ilva rises near Brundia .\n\nMara Venn plays the cello .\n")
        (folder / "empty").mkdir()
        (folder / "empty" / "reviver.toml").write_text(SETTINGS, encoding="utf-8")
        self._continued("prepared", folder / "empty", "init {}/base")
        self._continued(
            "history",
            folder / "prepared",
            "apply {}/first.jsonl",
            "apply {}/second.jsonl",
            "apply {}/third.jsonl --from v1",
            "undo",
            "tag first v1",
            "gc v1",
        )
        shutil.copytree(folder / "history" / "checkpoints" / "v2", folder / "edited")
        shutil.copytree(folder / "empty", folder / "clone")
        shutil.copytree(folder / "history" / "edits", folder / "clone" / "edits")
        self._continued("theirs", folder / "prepared", "apply {}/more.jsonl", "tag theirs v1")

    def _continued(self, name: str, start: Path, *commands: str) -> None:
        workspace = self.folder / name
        shutil.copytree(start, workspace, symlinks=True)
        for command in commands:
            words = command.format(self.forks.inside(self.folder)).split()
            ended = self.forks.run(*words, "-C", self.forks.inside(workspace))
            assert ended.code == 0, ended.err

    def begin(self, command: Command) -> Trial:
        """Return a fresh workspace that a command can begin in."""
        self._count += 1
        place = self.folder / f"trial-{self._count}"
        place.mkdir()
        shutil.copytree(self.folder / command.start, place / "workspace", symlinks=True)
        return Trial(self, command, place)

    def undisturbed(self, command: Command) -> Undisturbed:
        """Return what a command does where nothing disturbs it."""
        if command.name not in self._undisturbed:
            trial = self.begin(command)
            before, public_before = trial.state(), trial.public()
            ended = trial.run(fault=trial.fault())
            assert ended.code == 0, ended.err
            self._undisturbed[command.name] = Undisturbed(
                before=before,
                after=trial.state(),
                public_before=public_before,
                public_after=trial.public(),
                seconds=ended.seconds,
                calls=ended.calls,
            )
            trial.check_tidy()
            trial.remove()
        return self._undisturbed[command.name]

    def check_base(self) -> None:
        """Nobody wrote to the base."""
        assert contents(self.folder / "base") == self._base


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a command does where nothing disturbs it.

    Attributes:
        before, after: the workspace.
        public_before, public_after: the head, the versions and the tags, as readers see them.
        seconds: how long it takes.
        calls: how many of its calls each kind of fault can meet.
    """

    before: State
    after: State
    public_before: object
    public_after: object
    seconds: float
    calls: Mapping[str, int]


class Trial:
    """One workspace in which a command is disturbed."""

    def __init__(self, scenes: Scenes, command: Command, place: Path) -> None:
        self.command = command
        self.place = place
        self.workspace = place / "workspace"
        self._scenes = scenes
        self._log = self._operations()

    def run(self, arguments: str | None = None, **options: Any) -> Ended:
        """Run the command, or another one in the same place."""
        inside = self._scenes.forks.inside
        text = self.command.arguments if arguments is None else arguments
        words = [word.format(inside(self._scenes.folder), work=inside(self.place)) for word in text.split()]
        return self._scenes.forks.run(
            *words, "-C", inside(self.workspace), environment=dict(self.command.environment), **options
        )

    def fault(self, kind: str = "nothing", call: int = 1) -> Fault:
        """Return a fault of this workspace's disk."""
        return Fault(folder=self._scenes.forks.inside(self.place), kind=kind, call=call)

    def state(self) -> State:
        """Return what the workspace holds, and what was written beside it."""
        elsewhere = {f"out/{path}": sha for path, sha in contents(self.place / "out").items()}
        return {**workspace_state(self.workspace), **elsewhere}

    def public(self) -> object:
        """Return the head, the versions and the tags as readers see them."""
        workspace = Workspace(self.workspace)
        return workspace.head(), workspace.version_names(), read_tags(workspace.tags_file)

    def happened(self) -> bool:
        """Tell whether the command did all that readers can see of it."""
        known = self._scenes.undisturbed(self.command)
        return known.public_before != known.public_after == self.public()

    def check_stopped(self) -> None:
        """What must hold wherever the command was stopped: nothing is lost, nothing is half there, and readers see that."""
        known = self._scenes.undisturbed(self.command)
        now = self.state()
        for path in known.before.keys() | known.after.keys() | now.keys():
            if not path.startswith(("operations", "base.json")):
                states = known.before.get(path), known.after.get(path)
                assert now.get(path) in states, f"{path} is neither old nor new"
        for whole in {path.rpartition("/")[0] for path in now if path.startswith(("edits/v", "checkpoints/v", "out/"))}:
            parts = [_below(state, whole) for state in (now, known.before, known.after)]
            assert parts[0] in parts[1:], f"{whole} is half there"
        assert self._operations().startswith(self._log)
        if "base.json" in now:
            status = self.run("status --json").json
            assert status["problems"] == [] and status["base"]["touched"] == [], status
            assert all(one["state"] != "touched" for one in status["checkpoints"])
            assert status["rounds_kept"] == len(list(self.workspace.glob(".reviver/staging/rounds/*.json")))
            verified = self.run("verify --json")
            assert verified.code == 0 and verified.json["ok"], verified.out

    def finish(self) -> None:
        """The command is run again, and leaves what it leaves where nothing disturbs it."""
        known = self._scenes.undisturbed(self.command)
        untouched = self.state() == known.before and not (self.workspace / ".reviver" / "pending.json").exists()
        again = self.happened() and self.command.back
        if again:
            # Any command that writes brings what has happened to its end.
            assert self.run(f"gc --keep {self.command.keeps}").code == 0
            # A tag stands though the disk refused its line in the log.
            self.check_equal(known.after, log=self.command.makes_version)
            assert self.run(self.command.back).code == 0
        ended = self.run()
        assert ended.code == 0, ended.err
        if again and self.command.makes_version:
            self.check_same_version(known)
        else:
            self.check_equal(known.after, log=untouched)
        self.check_tidy()

    def check_equal(self, wanted: State, *, log: bool = True) -> None:
        """The workspace holds what it shall hold."""
        now = self.state()
        for path in now.keys() | wanted.keys() if log else (now.keys() | wanted.keys()) - {"operations"}:
            assert now.get(path) == wanted.get(path), path

    def check_same_version(self, known: Undisturbed) -> None:
        """The version that was made stays, and the one that was made after it is equal but for its name."""
        now = self.state()
        made, again = _newest(known.after), _newest(now)
        assert made != again
        for folder in ("edits", "checkpoints"):
            assert _below(now, f"{folder}/{again}") == _below(known.after, f"{folder}/{made}") != {}
        memory = {path: sha for path, sha in known.after.items() if path.startswith(".reviver/memory/")}
        assert memory.items() <= now.items()

    def check_tidy(self) -> None:
        """Nothing is left half made, and `status` says so."""
        for folder, folders, files in os.walk(self.place):
            for name in (*folders, *files):
                assert ".partial" not in name and ".tmp" not in name, f"{folder}/{name} was left behind"
        private = self.workspace / ".reviver"
        assert not (private / "pending.json").exists() and contents(private / "staging") == {}
        status = self.run("status --json").json
        assert status["clean"] and status["leftovers"] == [] and status["rounds_kept"] == 0, status
        self._scenes.check_base()

    def remove(self) -> None:
        """Make room."""
        shutil.rmtree(self.place)

    def _operations(self) -> bytes:
        log = self.workspace / ".reviver" / "operations.jsonl"
        return log.read_bytes() if log.exists() else b""


def contents(folder: Path) -> dict[str, str]:
    """Return the hashes of all files below a folder that are not half made, by path."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _half_made(name)]
        for name in names:
            if not _half_made(name):
                path = Path(parent, name)
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def workspace_state(workspace: Path) -> dict[str, object]:
    """Return what a workspace holds, but for what is of the moment: lock, intent, stamps, rounds that wait to be gone on with."""
    private = workspace / ".reviver"
    found: dict[str, object] = {
        path: sha for path, sha in contents(workspace).items() if not path.startswith(OF_THE_MOMENT)
    }
    for path in list(found):
        name = path.rpartition("/")[2]
        if name == "manifest.json" or "/evaluations/" in path:
            found[path] = _lasting(json.loads((workspace / path).read_bytes()), version="/v" in path)
        elif name in ("HEAD", "base.json"):
            found[name] = found.pop(path)
    log = private / "operations.jsonl"
    if log.exists():
        found["operations"] = [_lasting(json.loads(line)) for line in log.read_bytes().splitlines()]
    return found


def _half_made(name: str) -> bool:
    return name.startswith(".") and (".partial" in name or ".tmp" in name)


def _lasting(value: object, *, version: bool = False) -> object:
    """Return a record without what differs between two runs, and without the version's own name."""
    if isinstance(value, dict):
        dropped = MADE_BY_THE_WAY | ({"version"} if version else set())
        return {key: _lasting(item) for key, item in value.items() if key not in dropped}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def _below(state: State, folder: str) -> dict[str, object]:
    """Return what a state holds in a folder, by what follows its name; measurements come one by one and are no part of it."""
    return {
        path.removeprefix(f"{folder}/"): value
        for path, value in state.items()
        if path.startswith(f"{folder}/") and "/evaluations/" not in path
    }


def _newest(state: State) -> str:
    versions = {path.split("/")[1] for path in state if path.startswith("edits/v")}
    return max(versions, key=lambda name: int(name[1:]))
