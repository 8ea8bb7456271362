"""The front door: help, the table of commands, what is imported, and how usage errors are told."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import pytest
import typer

from reviver import __version__
from reviver.cli import app
from reviver.cli.values import PlainValue
from reviver.text import printable

HEAVY = ("torch", "numpy", "transformers", "huggingface_hub", "tokenizers", "safetensors", "pydantic")


def imported(arguments: list[str], folder: Path) -> set[str]:
    """Return the names of the modules that a command line imports in a fresh interpreter."""
    program = "import sys; from reviver.cli.app import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


def test_help_lists_every_command_in_order_and_imports_none(tmp_path: Path) -> None:
    modules = imported(["--help"], tmp_path)
    assert not {entry.module for entry in app.COMMANDS.values()} & modules
    assert not {*HEAVY, "rich"} & modules


@pytest.mark.parametrize("name", app.COMMANDS)
def test_help_of_a_command_imports_only_that_command(name: str, tmp_path: Path) -> None:
    modules = imported([name, "--help"], tmp_path)
    others = {entry.module for other, entry in app.COMMANDS.items() if other != name}
    assert app.COMMANDS[name].module in modules
    assert not others & modules
    assert not {*HEAVY, "rich"} & modules


@pytest.mark.parametrize("arguments", [["log"], ["status"], ["diff", "v1", "v2"], ["show", "v1"]])
def test_looking_imports_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    assert not {"torch", "transformers", "huggingface_hub"} & imported(arguments, tmp_path)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_the_table_says_what_the_docstring_says(name: str) -> None:
    entry = app.COMMANDS[name]
    documentation = inspect.getdoc(getattr(import_module(entry.module), entry.attribute))
    assert documentation is not None
    assert entry.help == documentation.partition("\n")[0]
    assert len(entry.help) <= 60, "the list of commands stays readable in 80 columns"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_goes_to_stdout_and_fits_a_terminal(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([flag]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    positions = [captured.out.index(f"\n  {name} ") for name in app.COMMANDS]
    assert positions == sorted(positions)
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "\x1b" not in captured.out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"reviver {__version__}\n"


def test_no_command_shows_the_help_on_stderr_as_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: reviver ")


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["lgo"], "no such command `lgo`", "did you mean `reviver log`?"),
        (["\x1b[31m"], "no such command `\\x1b[31m`", "see `reviver --help` for the commands there are"),
        (["greet", "--rnak", "3"], "no such option `--rnak`", "did you mean `--rank`? See `reviver greet --help`"),
        (["fail"], "missing argument `KIND`", "see `reviver fail --help`"),
        (["ask", "x"], "unexpected argument `x`", "see `reviver ask --help`"),
        (
            ["greet", "--rank", "mány\x07"],
            "invalid value for `--rank`: it must be a whole number, not `mány\\x07`",
            "see `reviver greet --help`",
        ),
        (["greet", "--rank", "0"], "`--rank` must be at least 1, not 0", "give `--rank` another value"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(arguments) == 2
    assert capsys.readouterr() == ("", f"error: {message}\nhint: {hint}\n")
    assert app.run([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err)["error"]
    assert (error["type"] in ("UsageError", "SettingsError"), printable(error["message"]), error["hint"]) == (
        True,
        message,
        hint,
    )


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["greet", "-C"], "`-C`"),
        (["--json", "greet"], "no such option `--json`"),
    ],
)
def test_usage_errors_in_the_parser_s_words(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err if "--json" not in arguments else json.loads(captured.err)["error"]["message"]
    assert text in error
    assert "'" not in error
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("samples")
def test_variables_stand_in_for_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIVER_QUIET", "yes")
    assert app.run(["greet", "Ann"]) == 0
    assert capsys.readouterr() == ("Ann\n", "")
    monkeypatch.setenv("REVIVER_QUIET", "0")
    assert app.run(["greet", "Ann"]) == 0
    assert "a note" in capsys.readouterr().err
    monkeypatch.setenv("REVIVER_QUIET", "perhaps")
    assert app.run(["greet", "Ann"]) == 2
    assert "(env var: `REVIVER_QUIET`): it must be `1` or `0`, not `perhaps`" in capsys.readouterr().err
    monkeypatch.delenv("REVIVER_QUIET")
    monkeypatch.setenv("REVIVER_JSON", "1")
    assert app.run(["lgo"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["message"] == "no such command `lgo`"


@pytest.mark.parametrize(
    ("kind", "text"),
    [(int, "-3"), (float, "2.5e-3"), (str, " x "), (Path, "a/../b"), (bool, "yes"), (bool, "0"), (bool, "FALSE")],
)
def test_our_conversion_of_values_is_typer_s(kind: type, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def show(value: object = None) -> None:
        seen.append(value)

    show.__annotations__ = {"value": Annotated[kind, typer.Option(envvar="VALUE")]}
    program = typer.Typer()
    program.command()(show)
    monkeypatch.setenv("VALUE", text)
    typer.main.get_command(program).main([], standalone_mode=False)
    assert seen == [PlainValue(kind).coerce(text, param=None, ctx=None)]


@pytest.mark.usefixtures("samples")
def test_what_follows_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["greet", "--", "--json"]) == 0
    assert "--json" in capsys.readouterr().out


def test_python_runs_the_package() -> None:
    done = subprocess.run([sys.executable, "-m", "reviver", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"reviver {__version__}\n"
