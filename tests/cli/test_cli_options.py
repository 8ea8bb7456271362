"""The set of commands and options is frozen: a new flag is a deliberate change of `options.json`."""

from __future__ import annotations

import json

import freeze
import pytest

from reviver.cli import app

COMMON = [
    {"kind": "option", "spellings": ["-C", "--directory"], "takes_value": True, "variable": "REVIVER_DIRECTORY"},
    {"kind": "option", "spellings": ["--json"], "takes_value": False, "variable": "REVIVER_JSON"},
    {"kind": "option", "spellings": ["-q", "--quiet"], "takes_value": False, "variable": "REVIVER_QUIET"},
    {"kind": "option", "spellings": ["-v", "--verbose"], "takes_value": False, "variable": "REVIVER_VERBOSE"},
    {"kind": "option", "spellings": ["-y", "--yes"], "takes_value": False, "variable": "REVIVER_YES"},
    {"kind": "option", "spellings": ["--no-progress"], "takes_value": False, "variable": "REVIVER_NO_PROGRESS"},
]


FROZEN = json.loads(freeze.FROZEN.read_text(encoding="utf-8"))


def test_the_commands_are_the_frozen_ones() -> None:
    assert list(app.COMMANDS) == list(FROZEN), "run `python tests/cli/freeze.py` if the change is meant"


@pytest.mark.parametrize("name", app.COMMANDS)
def test_the_options_are_the_frozen_ones(name: str) -> None:
    assert freeze.interface(name) == FROZEN[name], "run `python tests/cli/freeze.py` if the change is meant"


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_has_the_common_options_last(name: str) -> None:
    assert freeze.interface(name)[-len(COMMON) :] == COMMON


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_argument_and_option_is_explained(name: str) -> None:
    for parameter in app.load_command(name).params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


@pytest.mark.parametrize("name", app.COMMANDS)
def test_no_spelling_is_used_twice(name: str) -> None:
    spellings = [spelling for parameter in freeze.interface(name) for spelling in parameter["spellings"]]
    assert len(spellings) == len(set(spellings))
