"""The one sink: three modes, pure stdout, safe text, questions, closed pipes, colours."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from command_line import PROGRAM, on_terminal
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reviver.cli.output import UNBOUNDED_WIDTH, Output, dump_json, make_console, make_table, plain
from reviver.errors import UsageError

pytestmark = pytest.mark.usefixtures("samples")


def test_a_result_in_every_mode(check: Callable[..., None]) -> None:
    check(
        ["greet", "Ann"],
        human=["name", "Ann", "3", "done"],
        json={"name": "Ann", "path": "a/b", "loss": None, "numbers": [1, 2], "warnings": ["a warning"]},
        quiet="Ann",
    )


def test_everything_but_the_result_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    from reviver.cli.app import run

    assert run(["greet", "--rank", "3"]) == 0
    assert capsys.readouterr().err == "a note\nwarning: a warning\nhint: a hint\nwarning: its own warning\n"


def test_json_joins_the_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    from reviver.cli.app import run

    assert run(["greet", "--rank", "3", "--json", "-q"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["warnings"] == ["its own warning", "a warning"]
    assert captured.err == ""


def test_nothing_is_cut_or_coloured_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    from reviver.cli.app import run

    name = "x" * (UNBOUNDED_WIDTH - 100)
    assert run(["greet", name]) == 0
    out = capsys.readouterr().out
    assert name in out
    assert "\x1b" not in out


def test_hostile_text_is_escaped_in_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    from reviver.cli.app import run

    name = "[red]a\x1b[31m\u202eb\x07\ud800"
    assert run(["greet", name]) == 0
    out = capsys.readouterr().out
    assert "[red]a\\x1b[31m\\u202eb\\x07\\ud800" in out
    assert run(["greet", name, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["name"] == name


@pytest.mark.parametrize("width", [200, 24])
def test_a_table_keeps_every_character(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The fast path writes what rich writes, but for spaces at the ends of lines; a narrow one folds and loses nothing."""
    rows = [("v1", "12", "a fact"), ("v10", "3", "日本の首都"), ("", "1,000", "[b]x[/b]\x1b[0m"), ("v11", "4", "")]
    ours, rich = make_table("version", "facts", "message", right=("facts",)), Table(box=None, pad_edge=False)
    for name, justify in (("version", "left"), ("facts", "right"), ("message", "left")):
        rich.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    rich.padding = (0, 2, 0, 0)  # type: ignore[assignment]
    for row in rows:
        ours.add_row(*row)
        rich.add_row(*row)
    drawn = []
    for table in (ours, rich):
        console = make_console(sys.stdout)
        console.width = width
        console.print(table)
        drawn.append(capsys.readouterr().out.splitlines())
    assert width < 200 or not any(line.endswith(" ") for line in drawn[0])
    drawn = [[line.rstrip() for line in lines] for lines in drawn]
    assert drawn[0] == drawn[1]
    assert "日本の首都" in "".join(drawn[0]).replace(" ", "")


def test_cells_keep_their_style_and_spans_are_left_to_rich() -> None:
    def drawn(cell: Text) -> str:
        table = make_table("a", "b")
        table.add_row("x", cell)
        console = Console(force_terminal=True, color_system="standard", width=60, file=io.StringIO())
        console.print(table)
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert "\x1b[31my\x1b[0m" in drawn(Text("y", style="red"))
    assert "\x1b[31mz\x1b[0m" in drawn(Text.assemble("y", ("z", "red")))


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("go on with `reviver apply FACTS`", "go on with `reviver apply FACTS -C 'my model'`"),
        (
            "`reviver log` or `reviver show v1 --facts`",
            "`reviver log -C 'my model'` or `reviver show v1 --facts -C 'my model'`",
        ),
        ("get it with `reviver import DIR`", "get it with `reviver import DIR -C 'my model'`"),
        ("make another: `reviver init MODEL DIR`", "make another: `reviver init MODEL DIR`"),
        ("look around with `reviver log -C there`", "look around with `reviver log -C there`"),
        ("see `reviver apply --help`", "see `reviver apply --help`"),
        ("set `rank` in `reviver.toml`", "set `rank` in `reviver.toml`"),
    ],
)
def test_commands_in_hints_name_the_workspace(hint: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Output(directory=Path("my model")).hint(hint)
    Output().hint(hint)
    assert capsys.readouterr().err == f"hint: {told}\nhint: {hint}\n"


def test_plain_values() -> None:
    class Colour(Enum):
        RED = "red"

    assert plain([Colour.RED, Path("x"), float("inf"), {2: (1,)}, {"b", "a"}, np.float32(0.5), np.int64(3), True]) == [
        "red",
        "x",
        None,
        {"2": [1]},
        ["a", "b"],
        0.5,
        3,
        True,
    ]
    with pytest.raises(TypeError):
        plain(object())


def test_a_large_integer_and_a_float_survive_json() -> None:
    assert json.loads(dump_json({"a": 2**63, "b": 0.1})) == {"schema": 1, "a": 2**63, "b": 0.1}


def test_a_reader_who_leaves_early_is_no_error() -> None:
    with subprocess.Popen([*PROGRAM, "shout"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b"after the result\n"
        assert process.wait(timeout=30) == 0


def test_a_closed_stderr_stops_nothing() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", *PROGRAM, "greet", "Ann"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Ann" in done.stdout


@pytest.mark.parametrize("mode", ["--json", "-q", "--no-progress"])
def test_a_closed_stdout_stops_nothing(mode: str) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "greet", "Ann", mode], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("mode", ["--json", "-q", "--no-progress"])
def test_a_full_disk_under_stdout_is_an_error(mode: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PROGRAM, "greet", "Ann", mode], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"no space left" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_an_old_locale_shows_escapes() -> None:
    done = subprocess.run(
        [*PROGRAM, "greet", "Zoë…"], capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=True
    )
    assert b"Zo\\xeb\\u2026" in done.stdout


def test_colour_only_on_a_terminal_and_never_against_no_color() -> None:
    assert "\x1b[32mdone" in on_terminal(["greet"]).stdout
    assert "\x1b[1;33mwarning\x1b[0m: a warning" in on_terminal(["greet"]).stdout
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = on_terminal(["greet"], **variables).stdout
        assert "done" in shown
        assert "\x1b[3" not in shown
        assert "\x1b[1;3" not in shown


def test_questions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert Output(yes=True).confirm("sure?")
    with pytest.raises(UsageError, match=r"sure\\x1b\?"):
        Output().confirm("sure\x1b?")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError):
        Output(mode="json").confirm("sure?")
    for answer, expected in (("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False), ("", False)):
        monkeypatch.setattr(sys.stdin, "readline", lambda answer=answer: answer, raising=False)
        assert Output().confirm("sure?") is expected
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sure? [y/N] ")


def test_a_question_on_a_pipe_names_the_option(check_error: Callable[..., None]) -> None:
    check_error(
        ["ask"],
        type="UsageError",
        message="there is nobody to answer: go on?",
        hint="give `-y` to answer yes beforehand",
        code=2,
    )
