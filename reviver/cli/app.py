"""The command line's front door: a lazy table of commands, and the way in and out of the program.

`reviver --help` reads the table below and imports no command; `reviver log` imports only `reviver.cli.log`.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from reviver import __version__
from reviver.cli.command import COMMON_PANEL
from reviver.cli.errors import DEBUG_VARIABLE, USAGE, report
from reviver.cli.output import Mode, write_raw
from reviver.cli.values import use_plain_values
from reviver.errors import UsageError


class Entry(NamedTuple):
    """One command of the table: where it lives and what the list of commands says about it."""

    module: str
    attribute: str
    help: str
    panel: str


_EDIT, _LOOK, _PROVE, _BACK, _SHARE, _TRY = "Edit", "Look", "Write and prove", "Go back", "Share", "Try"

# In the order in which a person meets them. A test holds each help line equal to the command's docstring.
COMMANDS: dict[str, Entry] = {
    "init": Entry("reviver.cli.init", "init", "Pin a base model and prepare it to be edited.", _EDIT),
    "status": Entry("reviver.cli.status", "status", "Show the base, the head and the next step.", _EDIT),
    "apply": Entry("reviver.cli.apply", "apply", "Write a file of facts into the model as a new version.", _EDIT),
    "reapply": Entry(
        "reviver.cli.reapply", "reapply", "Solve a version's facts again, on another version or base.", _EDIT
    ),
    "merge": Entry("reviver.cli.merge", "merge", "Bring the patches of another branch in.", _EDIT),
    "squash": Entry("reviver.cli.squash", "squash", "Make one patch of several.", _EDIT),
    "adopt": Entry("reviver.cli.adopt", "adopt", "Make a version of somebody else's edited model.", _EDIT),
    "log": Entry("reviver.cli.log", "log", "Show the versions, newest first.", _LOOK),
    "show": Entry("reviver.cli.show", "show", "Show one version: facts, tensors, files, metrics.", _LOOK),
    "diff": Entry("reviver.cli.diff", "diff", "Show what changed between two versions.", _LOOK),
    "blame": Entry("reviver.cli.blame", "blame", "Show which version set a fact, and what the model answered.", _LOOK),
    "tag": Entry("reviver.cli.tag", "tag", "Name a version, or list the names.", _LOOK),
    "eval": Entry("reviver.cli.eval", "eval_", "Measure a version: facts, fluency, perplexity, drift.", _LOOK),
    "ask": Entry("reviver.cli.ask", "ask", "Show what several versions answer, side by side.", _LOOK),
    "checkout": Entry("reviver.cli.checkout", "checkout", "Write the checkpoint of a version.", _PROVE),
    "verify": Entry("reviver.cli.verify", "verify", "Rebuild a version and compare every byte.", _PROVE),
    "gc": Entry("reviver.cli.gc", "gc", "Remove checkpoints, which can be written again.", _PROVE),
    "undo": Entry("reviver.cli.undo", "undo", "Move the head back to where it was.", _BACK),
    "redo": Entry("reviver.cli.redo", "redo", "Move the head forward again after undo.", _BACK),
    "revert": Entry("reviver.cli.revert", "revert", "Take one patch, or one fact of it, out of the middle.", _BACK),
    "push": Entry("reviver.cli.push", "push", "Publish the head on the Hub, with its history.", _SHARE),
    "import": Entry("reviver.cli.import_", "import_", "Take in the versions of another workspace.", _SHARE),
    "doctor": Entry("reviver.cli.doctor", "doctor", "Look at the machine, or whether a model can be edited.", _TRY),
    "demo": Entry("reviver.cli.demo", "demo", "Tell the whole story in a minute, offline.", _TRY),
}

# Libraries read these on import: their own bars and remarks would come between ours. A value of the user stays.
_QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class VerbCommand(TyperCommand):
    """A command whose help page shows its own options first and the common ones after."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, the help option among them, with our conversion of values."""
        return use_plain_values(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces of the usage line, an optional argument in brackets."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        return ["[OPTIONS]", *map(_argument_name, arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options, grouped by their panel."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], COMMON_PANEL: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            kind = "Options"
            if parameter.param_type_name == "argument":
                kind, record = "Arguments", (_argument_name(parameter), getattr(parameter, "help", None) or "")
            panel = getattr(parameter, "rich_help_panel", None) or (COMMON_PANEL if parameter.name == "help" else kind)
            groups.setdefault(panel, []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _argument_name(argument: Any) -> str:
    name = re.sub(r"^\[(.*)\]$", r"\1", argument.metavar or argument.name.upper())
    name = f"{name}..." if argument.nargs != 1 else name
    return name if argument.required else f"[{name}]"


class LazyGroup(TyperGroup):
    """The group of all commands; a command's module is imported when that command is asked for, and not before."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, the help option among them, with our conversion of values."""
        return use_plain_values(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one command."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands from the table alone."""
        width = max(map(len, COMMANDS))
        for panel in dict.fromkeys(entry.panel for entry in COMMANDS.values()):
            rows = [(name.ljust(width), entry.help) for name, entry in COMMANDS.items() if entry.panel == panel]
            with formatter.section(panel):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the first argument names, or say which one may have been meant."""
        name = args[0]
        if name not in COMMANDS:
            near = get_close_matches(name, COMMANDS, n=2)
            meant = " or ".join(f"`reviver {match}`" for match in near)
            raise UsageError(
                f"no such command `{name}`",
                hint=f"did you mean {meant}?" if near else "see `reviver --help` for the commands there are",
            )
        return name, self.get_command(ctx, name), args[1:]


def load_command(name: str) -> TyperCommand:
    """Import the command `name` of the table and return it ready to be run."""
    entry = COMMANDS[name]
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, cls=VerbCommand)(getattr(import_module(entry.module), entry.attribute))
    command = get_command(single)
    if not isinstance(command, TyperCommand):
        raise TypeError(f"`{name}` did not become a command")
    return command


def make_group() -> LazyGroup:
    """Return the program as typer runs it."""
    application = typer.Typer(
        cls=LazyGroup,
        callback=_reviver,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        subcommand_metavar="COMMAND [ARGUMENTS]",
    )
    group = get_command(application)
    if not isinstance(group, LazyGroup):
        raise TypeError("the table of commands did not become a group")
    return group


def run(arguments: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code; nothing escapes but the interpreter's own end."""
    mode = _mode(arguments)
    group = make_group()
    try:
        if not arguments:
            write_raw(group.get_help(group.make_context("reviver", [], resilient_parsing=True)) + "\n")
            return USAGE
        code = group.main(list(arguments), prog_name="reviver", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        return report(error, mode=mode, verb=next((name for name in arguments[:1] if name in COMMANDS), None))
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Run the command line of this process and end it."""
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions and not os.environ.get(DEBUG_VARIABLE):
        # Remarks of libraries to programmers are no help to the person at the terminal.
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        # An old locale must not turn a sign that it cannot show into a crash.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    if "WORLD_SIZE" in os.environ:
        # The libraries of several processes leave threads behind that can abort the interpreter as it takes itself apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _mode(arguments: Sequence[str]) -> Mode:
    """Return the form in which a command line that cannot be parsed is told so."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    wants_json = "--json" in options or os.environ.get("REVIVER_JSON", "").lower() in ("1", "true", "yes", "on")
    return "json" if wants_json else "human"


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"reviver {__version__}\n")
        raise typer.Exit


def _reviver(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Version control for what a language model knows."""
