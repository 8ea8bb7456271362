"""Every error ends in one line of what, one line of what next, and the exit code of its class."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import PROGRAM, Outcome

from reviver import errors
from reviver.cli.errors import describe

pytestmark = pytest.mark.usefixtures("samples")

CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ReviverError) and kind.__module__ == errors.__name__
}


def expected_code(kind: type[errors.ReviverError]) -> int:
    if issubclass(kind, errors.UsageError):
        return 2
    return 3 if issubclass(kind, errors.CheckFailedError) else 1


@pytest.mark.parametrize("name", CLASSES)
def test_every_class(name: str, check_error: Callable[..., None]) -> None:
    check_error(
        ["fail", name],
        type=name,
        message="what went \\x1b[2Jwrong\\u202e",
        hint="try `this`",
        code=expected_code(CLASSES[name]),
    )


@pytest.mark.parametrize(
    ("kind", "type", "message", "hint", "code"),
    [
        (
            "disk",
            "ResourceError",
            "no space left on the disk",
            "free some space and run the command again; nothing was lost",
            1,
        ),
        (
            "missing",
            "ResourceError",
            "cannot find `/no/such/file`",
            "check the path; `reviver status` says what the workspace holds",
            1,
        ),
        (
            "memory",
            "ResourceError",
            "out of memory; nothing was changed",
            "use smaller rounds, another `--device`, or a machine with more memory",
            1,
        ),
        (
            "device-memory",
            "ResourceError",
            "out of memory; nothing was changed",
            "use smaller rounds, another `--device`, or a machine with more memory",
            1,
        ),
        (
            "defect",
            "UnexpectedError",
            "unexpected KeyError: 'over\\nthere'",
            "this is a defect of reviver: set `REVIVER_DEBUG=1` to see the traceback, and report it",
            1,
        ),
        (
            "interrupt",
            "Interrupted",
            "interrupted; nothing is lost",
            "run `reviver fail` again to go on where it was",
            130,
        ),
    ],
)
def test_what_the_system_throws(
    kind: str, type: str, message: str, hint: str, code: int, check_error: Callable[..., None]
) -> None:
    check_error(["fail", kind], type=type, message=message, hint=hint, code=code)


def test_an_exit_code_of_the_command_s_own(call: Callable[..., Outcome]) -> None:
    assert call("fail", "exit") == Outcome(code=3, stdout="", stderr="")


def test_all_problems_at_once(call: Callable[..., Outcome]) -> None:
    lines = call("fail", "problems").stderr.splitlines()
    assert lines[0] == "error: `facts.jsonl` has 30 problems"
    assert lines[1] == "  line 1: bad \\x1b[31mthing"
    assert lines[-2:] == ["  … and 10 more problems", "hint: correct them"]
    assert len(lines) == 23
    assert len(json.loads(call("fail", "problems", "--json").stderr)["error"]["problems"]) == 30


def test_one_problem_is_told_once(call: Callable[..., Outcome]) -> None:
    lines = call("fail", "problem").stderr.splitlines()
    assert lines == ["error: `facts.jsonl`:3: bad thing: two", "hint: correct it"]
    assert json.loads(call("fail", "problem", "--json").stderr)["error"]["problems"] == ["line 3: bad thing: two"]


def test_a_traceback_only_when_asked_for(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in call("fail", "defect").stderr
    monkeypatch.setenv("REVIVER_DEBUG", "1")
    outcome = call("fail", "defect")
    assert outcome.code == 1
    assert outcome.stderr.startswith("error: unexpected KeyError")
    assert "Traceback (most recent call last)" in outcome.stderr
    assert "in fail" in outcome.stderr


@pytest.mark.parametrize("mode", [[], ["--json"]])
def test_control_c(mode: list[str]) -> None:
    with subprocess.Popen(
        [*PROGRAM, "wait", "-v", *mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in its background makes them ignore ^C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        if mode:
            assert process.stdout is not None
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=2)
        else:
            assert process.stderr.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read().decode()
        assert process.wait(timeout=30) == 130
    assert "Traceback" not in stderr
    if mode:
        assert json.loads(stderr)["error"]["type"] == "Interrupted"
    else:
        assert stderr == "error: interrupted; nothing is lost\nhint: run `reviver wait` again to go on where it was\n"


def test_an_interrupt_after_the_operation_was_done_says_so() -> None:
    told = describe(KeyboardInterrupt("v3 is made and is the head"), verb="apply")
    assert (told.message, told.exit_code) == ("interrupted, but v3 is made and is the head", 130)
    assert told.hint is not None and "do not run it again" in told.hint
    before = describe(KeyboardInterrupt(), verb="apply")
    assert before.hint is not None and "run `reviver apply` again" in before.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_answer_that_cannot_be_written_does_not_ask_to_run_the_command_again() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PROGRAM, "greet", "--json"], stdout=full, stderr=subprocess.PIPE, check=False)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["type"]) == (1, "UnfinishedError")
    assert error["message"] == "the answer could not be written to stdout: no space left on device"
    assert "again" not in error["hint"]
