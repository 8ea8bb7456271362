"""A disk that is full, read-only or broken: one clear line, nothing lost, and the same command run again makes the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from faulty_disk import KINDS
from forks import SIZE, Ended, Forks
from writing_commands import COMMANDS, EVERY_COMMAND, Command, Scenes, Trial

FAULTS = tuple(kind for kind in KINDS if kind != "nothing")
LOOKING = (
    "status", "log --graph", "show v2", "diff v1 v2", "blame Orvania", "tag", "verify", "gc --all --dry-run",
    "apply {}/more.jsonl --dry-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenes]:
    """The same on a file system of their own, which can be filled, and mounted read-only."""
    folder = tmp_path_factory.mktemp("disk").resolve()
    trial = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(folder)]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a file system of their own here")
    with Forks(folder) as forks:
        yield Scenes(forks, forks.view)


def check_answer(ended: Ended) -> None:
    """One clear line of what, one of what next."""
    assert ended.code == 1, (ended.code, ended.err)
    lines = ended.err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, ended.err
    assert sum(line.startswith("hint: ") for line in lines) == 1, ended.err
    assert "Traceback" not in ended.err and "defect" not in ended.err and "unexpected" not in ended.err, ended.err


def check_outcome(trial: Trial, ended: Ended) -> bool:
    """Whatever the disk did, the answer is true, and the command can be run again; return whether it was refused."""
    trial.check_stopped()
    if ended.code != 0:
        check_answer(ended)
        if trial.command.back:
            # Whoever is told that it failed may run it again; whoever must not is told so.
            assert trial.happened() == ("do not run it again" in ended.err), ended.err
    trial.finish()
    return ended.code != 0


def fail(scenes: Scenes, command: Command, kind: str, calls: list[int]) -> dict[str, int]:
    """Let the disk fail at some of a command's calls, one at a time."""
    refused = 0
    for call in calls:
        trial = scenes.begin(command)
        refused += check_outcome(trial, trial.run(fault=trial.fault(kind, call)))
        trial.remove()
    return {"points": len(calls), "refused": refused}


def drawn_calls(scenes: Scenes, command: Command, kind: str, count: int) -> list[int]:
    """Draw calls, one from each of so many equal parts of the command."""
    total = scenes.undisturbed(command).calls[kind]
    drawn = random.Random(f"{command.name} {kind}")
    edges = [round(total * part / count) for part in range(count + 1)]
    return [drawn.randint(first + 1, last) for first, last in pairwise(edges) if first < last]


@EVERY_COMMAND
def test_a_fault(command: Command, scenes: Scenes) -> None:
    kind = FAULTS[COMMANDS.index(command) % len(FAULTS)]
    fail(scenes, command, kind, drawn_calls(scenes, command, kind, 1))


@pytest.mark.long
@pytest.mark.timeout(1800)
@EVERY_COMMAND
def test_faults(command: Command, scenes: Scenes, record_property: Callable[[str, object], None]) -> None:
    found = {}
    for kind in FAULTS:
        calls = drawn_calls(scenes, command, kind, 1 + (command.weight > 2))
        found[kind] = fail(scenes, command, kind, calls)
    record_property("faults", found)


def fill(scenes: Scenes, command: Command, moments: int) -> dict[str, int]:
    """Fill the small disk to the last byte at random moments of a command."""
    drawn, refused = random.Random(command.name), 0
    for _ in range(moments):
        trial = scenes.begin(command)
        ended = trial.run(fill_at=drawn.uniform(0, 1) * scenes.undisturbed(command).seconds)
        scenes.forks.remount(SIZE)
        refused += check_outcome(trial, ended)
        trial.remove()
    return {"moments": moments, "refused": refused}


@pytest.mark.long
@pytest.mark.timeout(1800)
@EVERY_COMMAND
def test_a_disk_that_fills_up(
    command: Command, small_disk: Scenes, record_property: Callable[[str, object], None]
) -> None:
    record_property("filled", fill(small_disk, command, 2 + 2 * (command.weight > 2)))


def test_a_full_disk_can_be_freed(small_disk: Scenes) -> None:
    command = next(command for command in COMMANDS if command.name == "gc")
    trial = small_disk.begin(command)
    ended = trial.run(fill_at=0)
    small_disk.forks.remount(SIZE)
    assert ended.code == 0, ended.err
    trial.check_equal(small_disk.undisturbed(command).after)
    trial.remove()


def test_a_read_only_disk(small_disk: Scenes) -> None:
    """Everything that only looks works, and nothing else does."""
    trials = [small_disk.begin(command) for command in COMMANDS]
    before = [(trial.state(), trial.public()) for trial in trials]
    small_disk.forks.remount("ro")
    try:
        for trial in trials:
            check_answer(trial.run())
        for arguments in LOOKING:
            ended = trials[-1].run(arguments)
            assert ended.code == 0, ended.err
    finally:
        small_disk.forks.remount(f"rw,{SIZE}")
    for trial, (state, public) in zip(trials, before, strict=True):
        assert (trial.state(), trial.public()) == (state, public)
        trial.remove()
