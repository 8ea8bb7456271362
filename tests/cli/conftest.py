"""One fixture that asserts what a command prints in all modes at once, and the sample commands."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import sample_verbs
from command_line import Outcome

from reviver.cli import app
from reviver.text import printable

Json = Mapping[str, object] | Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("REVIVER_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(app, "COMMANDS", {**app.COMMANDS, **sample_verbs.SAMPLES})
    yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = app.run(arguments)
        captured = capsys.readouterr()
        return Outcome(code=code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture
def check(call: Callable[..., Outcome]) -> Callable[..., None]:
    """Assert what one command line prints in every mode.

    `human` are texts that stdout holds; `json` the object's fields (schema aside), or a function that judges the
    object; `quiet` the whole of stdout under `-q`, without its final newline. stdout holds nothing else in JSON and
    quiet modes, and stderr nothing at all. `before` runs ahead of each call and puts back what the command changes.
    """

    def check_call(
        arguments: Sequence[str],
        *,
        human: Sequence[str] | str,
        json: Json,
        quiet: str,
        code: int = 0,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        before()
        outcome = call(*arguments)
        assert outcome.code == code, outcome.stderr
        for text in [human] if isinstance(human, str) else human:
            assert text in outcome.stdout

        before()
        outcome = call(*arguments, "--json")
        assert (outcome.code, outcome.stderr) == (code, "")
        fields = json_module.loads(outcome.stdout)
        assert next(iter(fields)) == "schema"
        assert fields.pop("schema") == 1
        if callable(json):
            json(fields)
        else:
            assert fields == json

        before()
        outcome = call(*arguments, "-q")
        assert (outcome.code, outcome.stderr) == (code, "")
        assert outcome.stdout == (f"{quiet}\n" if quiet else "")

    return check_call


@pytest.fixture
def check_error(call: Callable[..., Outcome]) -> Callable[..., None]:
    """Assert how one command line fails in every mode: one `error:` line, one `hint:` line, or one JSON object."""

    def check_call(arguments: Sequence[str], *, type: str, message: str, hint: str | None, code: int) -> None:
        expected = f"error: {message}\n" + ("" if hint is None else f"hint: {hint}\n")
        for mode in ((), ("-q",)):
            assert call(*arguments, *mode) == Outcome(code=code, stdout="", stderr=expected)
        outcome = call(*arguments, "--json")
        assert (outcome.code, outcome.stdout) == (code, "")
        fields = json_module.loads(outcome.stderr)
        shown = {key: value and printable(value) for key, value in fields["error"].items()}
        assert (fields["schema"], shown) == (1, {"type": type, "message": message, "hint": hint})

    return check_call
