"""Killed at any moment, nothing is lost: the next command works, and makes byte for byte what an uninterrupted run makes."""

from __future__ import annotations

import random
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest
from writing_commands import COMMANDS, EVERY_COMMAND, Command, Scenes

MOMENTS = 4
"""How often a command of weight 1 is killed in the long run."""


def kill(scenes: Scenes, command: Command, moments: int) -> dict[str, int]:
    """Kill a command at random moments over its whole duration; some of them meet the run that goes on after a kill."""
    drawn = random.Random(command.name)
    known = scenes.undisturbed(command)
    done = {"moments": 0, "of them in a run after a kill": 0, "with finished rounds to go on from": 0}
    while done["moments"] < moments:
        trial = scenes.begin(command)
        killed_before = False
        while done["moments"] < moments:
            ended = trial.run(kill_at=drawn.uniform(0, 1) * known.seconds)
            if ended.code is not None:
                break
            trial.check_stopped()
            done["moments"] += 1
            done["of them in a run after a kill"] += killed_before
            done["with finished rounds to go on from"] += any(
                (trial.workspace / ".reviver").glob("staging/rounds/*.json")
            )
            killed_before = True
            # Whoever runs again what has happened asks for it twice.
            if trial.happened() or drawn.random() < 0.7:
                break
        trial.finish()
        trial.remove()
    return done


@EVERY_COMMAND
def test_killed_once(command: Command, scenes: Scenes) -> None:
    kill(scenes, command, 1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@EVERY_COMMAND
def test_killed_at_random_moments(
    command: Command, scenes: Scenes, record_property: Callable[[str, object], None]
) -> None:
    done = kill(scenes, command, MOMENTS * command.weight)
    if command.name == "apply in rounds":
        assert done["with finished rounds to go on from"] > 0
    record_property("killed", done)


def test_a_fork_does_what_a_process_of_its_own_does(
    scenes: Scenes, reviver: Callable[..., CompletedProcess[str]]
) -> None:
    command = next(command for command in COMMANDS if command.name == "apply in rounds")
    trial = scenes.begin(command)
    reviver(*command.arguments.format(scenes.folder).split(), "-C", trial.workspace)
    trial.check_equal(scenes.undisturbed(command).after)
    trial.remove()
