"""The one sink: data goes to stdout, everything else to stderr, in a human, a JSON and a quiet form.

rich is imported only when something is drawn with it, so that `--help` and errors stay fast.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

from reviver.errors import UnfinishedError, UsageError
from reviver.progress import Progress
from reviver.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from reviver.cli.table import PlainTable

Mode = Literal["human", "json", "quiet"]
Result = TypeVar("Result")

SCHEMA = 1

# Where stdout is a file or a pipe nothing is wrapped or cut: a script must find the whole line.
UNBOUNDED_WIDTH = 4096

# A command inside a hint. `demo` makes a workspace of its own, and `DIR` is where another one is to be made.
_COMMAND = re.compile(r"`(reviver [a-z]+(?: [^`]*)?)`")
_OWN_PLACE = re.compile(r"^reviver (demo|init .* DIR$)| -C | --help")

_LABEL_COLOURS = {"error": "1;31", "warning": "1;33", "hint": "1;36"}


class Output:
    """What a command says, and where.

    Args:
        mode: `human` draws results, `json` prints one object, `quiet` prints at most one short line.
        yes: every question is answered with yes beforehand.
        show_progress: whether progress may be drawn (it is only on a terminal, and never with `json` or `quiet`).
        directory: the workspace's folder, which the commands in hints and warnings name where it is not the current one.
    """

    def __init__(
        self, *, mode: Mode = "human", yes: bool = False, show_progress: bool = True, directory: Path = Path()
    ) -> None:
        self.directory = directory
        self.mode = mode
        self.yes = yes
        self.show_progress = show_progress
        self._warned: list[str] = []
        self._printed_warnings: set[str] = set()

    def result(
        self, report: Result, *, render: Callable[[Console, Result], None], quiet: Callable[[Result], str] | None = None
    ) -> None:
        """Print what a verb returned, once per command.

        Human: `render` draws it; then the report's `warnings`, if it has that field, go to stderr. JSON: one object
        with `schema` and the report's fields, to whose `warnings` everything is added that `warn` was told. Quiet: the
        line that `quiet` returns, or nothing. A reader who closed the pipe early (`| head`) ends the printing, not the
        work.

        Args:
            report: a dataclass instance.
            render: draws the report on a console whose markup is off.
            quiet: the shortest useful line, such as the name of the version that was made.
        """
        if self.mode == "json":
            self._print_json(report)
            return
        if self.mode == "human":
            _to_stdout(lambda: self._draw(report, render))
            for warning in getattr(report, "warnings", ()):
                self.warn(str(warning))
        elif quiet is not None:
            line = printable(quiet(report))
            _to_stdout(lambda: sys.stdout.write(line + "\n"))

    def note(self, text: str) -> None:
        """Say something worth knowing on stderr (human mode only)."""
        if self.mode == "human":
            write_line(text)

    def warn(self, text: str) -> None:
        """Warn on stderr; under `--json` the warning joins the object's `warnings`. The same text is shown once."""
        if text in self._warned:
            return
        self._warned.append(text)
        if self.mode == "human":
            write_labelled("warning", with_place(text, self.directory))

    def hint(self, text: str) -> None:
        """Say which command or act is next, on stderr (human mode only)."""
        if self.mode == "human":
            write_labelled("hint", with_place(text, self.directory))

    def progress(self) -> Progress:
        """Return what a verb reports its progress to: bars on a terminal, notes elsewhere, nothing if asked so."""
        from reviver.cli.progress import make_progress

        return make_progress(self)

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question on stderr; an empty answer is no.

        Raises:
            UsageError: there is nobody to ask, because stdin is no terminal or `--json` was given.
        """
        if self.yes:
            return True
        if self.mode == "json" or sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(
                f"there is nobody to answer: {printable(question)}", hint="give `-y` to answer yes beforehand"
            )
        sys.stderr.write(f"{printable(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _draw(self, report: Result, render: Callable[[Console, Result], None]) -> None:
        render(make_console(sys.stdout), report)
        sys.stdout.flush()

    def _print_json(self, report: object) -> None:
        fields = plain(report)
        if not isinstance(fields, dict):
            raise TypeError(f"a result must be a dataclass or a mapping, not {type(report).__name__}")
        if isinstance(fields.get("warnings"), list):
            fields["warnings"] += [text for text in self._warned if text not in fields["warnings"]]
        else:
            for text in self._warned:
                write_labelled("warning", text)
        text = dump_json(fields)
        _to_stdout(lambda: sys.stdout.write(text))


def plain(value: object) -> object:
    """Return `value` as what JSON knows: dataclasses as objects, paths as strings, NaN and infinity as null."""
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def dump_json(fields: Mapping[str, object]) -> str:
    """Return one JSON object with the schema first and a final newline.

    Everything beyond ASCII is escaped: neither an old terminal's encoding nor a control character hidden in a fact can
    come between the program that writes and the one that reads.
    """
    return json.dumps({"schema": SCHEMA, **fields}, indent=2, allow_nan=False) + "\n"


def with_place(text: str, directory: Path) -> str:
    """Return a hint whose commands find the workspace as they stand: with `-C`, where it is not the current folder."""
    if directory == Path():
        return text
    there = f" -C {shlex.quote(str(directory))}"
    return _COMMAND.sub(lambda found: found[0] if _OWN_PLACE.search(found[1]) else f"`{found[1]}{there}`", text)


def make_console(stream: IO[str]) -> Console:
    """Return a rich console that parses no markup, cuts nothing off a terminal and shows no control character."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class PlainConsole(Console):
        """A console whose text is made safe at the last moment, whatever a renderer forgot."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(_printable_lines(text), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> list[Segment]:
            return [
                segment if segment.control else Segment(_printable_lines(segment.text), segment.style)
                for segment in super().render(renderable, options)
            ]

        def on_broken_pipe(self) -> None:
            # rich would end the program here. A lost stdout is dealt with by the sink; a lost stderr stops no work.
            if stream is sys.stdout:
                raise
            self.quiet = True

    return PlainConsole(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
        width=None if stream.isatty() else UNBOUNDED_WIDTH,
        no_color=None if coloured(stream) else True,
    )


def make_table(*headers: str, right: tuple[str, ...] = ()) -> PlainTable:
    """Return the one kind of table that commands draw: no frame, a bold header, columns in `right` aligned right."""
    from reviver.cli.table import PlainTable

    return PlainTable(headers, right)


def _printable_lines(text: str) -> str:
    return text if text.isprintable() else "\n".join(printable(line) for line in text.split("\n"))


def coloured(stream: IO[str]) -> bool:
    """Return whether to colour: only on a terminal that can, and never against `NO_COLOR` (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write_labelled(label: str, text: str) -> None:
    """Write `label: text` to stderr as one line; the label is coloured where colour is wanted."""
    shown = f"\x1b[{_LABEL_COLOURS[label]}m{label}\x1b[0m" if _stderr_coloured() else label
    _to_stderr(f"{shown}: {printable(text)}\n")


def write_line(text: str) -> None:
    """Write one line to stderr with every control character escaped."""
    _to_stderr(printable(text) + "\n")


def write_raw(text: str) -> None:
    """Write text to stderr as it stands: JSON, a help page, a traceback."""
    _to_stderr(text)


def _stderr_coloured() -> bool:
    return sys.stderr is not None and coloured(sys.stderr)


def _to_stderr(text: str) -> None:
    # Nobody listening to remarks is no reason to stop the work that they are about.
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return


def _to_stdout(write: Callable[[], object]) -> None:
    if sys.stdout is None:
        return
    try:
        write()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough. The interpreter flushes once more when it ends, so what is left goes nowhere.
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        # What cannot be told was done all the same: an `undo` that is run again would undo one more.
        raise UnfinishedError(
            f"the answer could not be written to stdout: {(error.strerror or str(error)).lower()}",
            hint="only the answer is lost: what the command does is done; see with `reviver status` how things stand",
        ) from error


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
