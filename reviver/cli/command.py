"""What every command has in common: the options, the context that a command works with, and the end of every error."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reviver.cli.errors import report
from reviver.cli.output import Mode, Output
from reviver.editing.world import find_world
from reviver.errors import UsageError

if TYPE_CHECKING:
    from reviver.settings import Settings

COMMON_PANEL = "Common options"
_MANY_PROCESSES = ("init", "apply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a command is given: where it works and where it speaks.

    Attributes:
        verb: the command's name, as typed.
        directory: the folder of `-C`, as given; the workspace is here.
        output: the one sink for results, notes, warnings, hints, questions and progress.
        yes: `-y` was given.
        verbose: `-v` was given.
    """

    verb: str
    directory: Path
    output: Output
    yes: bool = False
    verbose: bool = False

    def settings(self, **values: object) -> Settings:
        """Return the settings of this workspace with the command line's own values on top.

        Args:
            values: one per setting, named section and key (`apply_rank=8` for `[apply] rank`); None means not given.

        Raises:
            SettingsError: a value is unknown, of the wrong type or out of range.
        """
        from reviver.settings import Settings

        given = {name.replace("_", ".", 1): value for name, value in values.items() if value is not None}
        return Settings.load(self.directory, given)


def verb(function: Callable[..., None]) -> Callable[..., int]:
    """Turn `function(context, …)` into a command with the common options that ends with an exit code, whatever happens.

    The function's first parameter is the `Context`; the others are typer's, declared with `Annotated`. It returns
    nothing: that is exit code 0; an error of `reviver.errors` ends with its class's code, `typer.Exit` with its own.
    """
    signature = inspect.signature(function, eval_str=True)
    _, *own = signature.parameters.values()
    name = function.__name__.rstrip("_").replace("_", "-")

    @functools.wraps(function)
    def command(**values: Any) -> int:
        common = {parameter.name: values.pop(parameter.name) for parameter in _COMMON}
        mode: Mode = "json" if common["common_json"] else "quiet" if common["common_quiet"] else "human"
        directory: Path = common["common_directory"]
        output = Output(
            mode=mode,
            yes=common["common_yes"],
            show_progress=not common["common_no_progress"],
            directory=directory,
        )
        context = Context(
            verb=name,
            directory=directory,
            output=output,
            yes=common["common_yes"],
            verbose=common["common_verbose"],
        )
        try:
            if name not in _MANY_PROCESSES and find_world() is not None:
                raise UsageError(
                    f"`reviver {name}` runs in one process",
                    hint=f"leave `torchrun` out; it is for `{'` and `'.join(_MANY_PROCESSES)}`",
                )
            function(context, **values)
        except typer.Exit as end:
            return end.exit_code
        except (Exception, KeyboardInterrupt) as error:
            return report(error, mode=mode, verb=name, directory=output.directory)
        return 0

    parameters = [*(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *_COMMON]
    command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _common(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(f"common_{name}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(*names: str, help: str, variable: str | None) -> Any:
    return Annotated[bool, typer.Option(*names, help=help, envvar=variable, rich_help_panel=COMMON_PANEL)]


_COMMON = (
    _common(
        "directory",
        Annotated[
            Path,
            typer.Option(
                "-C",
                "--directory",
                metavar="DIR",
                help="The workspace's folder.",
                envvar="REVIVER_DIRECTORY",
                rich_help_panel=COMMON_PANEL,
            ),
        ],
        Path(),
    ),
    _common("json", _flag("--json", help="Print one JSON object and nothing else.", variable="REVIVER_JSON"), False),
    _common(
        "quiet", _flag("-q", "--quiet", help="Print the shortest answer, and errors.", variable="REVIVER_QUIET"), False
    ),
    _common(
        "verbose",
        _flag("-v", "--verbose", help="Show long lists whole.", variable="REVIVER_VERBOSE"),
        False,
    ),
    _common("yes", _flag("-y", "--yes", help="Answer every question with yes.", variable="REVIVER_YES"), False),
    _common(
        "no_progress",
        _flag("--no-progress", help="Draw no progress bars.", variable="REVIVER_NO_PROGRESS"),
        False,
    ),
)
