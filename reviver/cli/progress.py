"""Progress drawn on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reviver.progress import NullProgress, Progress, Task
from reviver.text import human_bytes, human_duration, printable

if TYPE_CHECKING:
    import rich.progress
    from rich.text import Text

    from reviver.cli.output import Output


def make_progress(output: Output) -> Progress:
    """Return bars where a person watches, notes where only a log does, silence under `--json` and `--quiet`."""
    if output.mode != "human":
        return NullProgress()
    if not output.show_progress or sys.stderr is None or not sys.stderr.isatty():
        return _Notes(output)
    return _Bars(output)


class _Notes(NullProgress):
    """Tells the notes and draws nothing."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def note(self, text: str) -> None:
        self._output.note(text)


class _BarTask:
    def __init__(self, bars: rich.progress.Progress, identity: rich.progress.TaskID) -> None:
        self._bars = bars
        self._identity = identity

    def advance(self, amount: float = 1) -> None:
        self._bars.advance(self._identity, amount)


class _Bars:
    """One live display for all tasks that run at once; it vanishes with the last of them."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bars: rich.progress.Progress | None = None
        self._running = 0

    @contextmanager
    def task(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        bars = self._bars
        if bars is None:
            bars = self._bars = _make_bars()
            bars.start()
        self._running += 1
        identity = bars.add_task(printable(name, 40), total=total, unit=unit)
        try:
            yield _BarTask(bars, identity)
        finally:
            bars.remove_task(identity)
            self._running -= 1
            if self._running == 0:
                bars.stop()
                self._bars = None

    def note(self, text: str) -> None:
        if self._bars is None:
            self._output.note(text)
        else:
            self._bars.console.print(printable(text))


def rate_text(speed: float | None, unit: str) -> str:
    """Return a rate as people say it: `'1.5 MiB/s'`, `'12.3 facts/s'`, and `'8.0 s/round'` for slow work."""
    if not speed:
        return ""
    if unit in ("B", "bytes"):
        return f"{human_bytes(speed)}/s"
    noun = unit or "steps"
    if speed < 1:
        return f"{human_duration(1 / speed)}/{noun.removesuffix('s')}"
    return f"{speed:.1f} {noun}/s"


def left_text(seconds: float | None) -> str:
    """Return the time left as text, or nothing while it is unknown."""
    return "" if seconds is None else f"{human_duration(seconds)} left"


def done_text(completed: float, total: float | None, unit: str) -> str:
    """Return how much is done: `'1.5 MiB of 3.0 MiB'`, `'12 of 100 facts'`, `'12 facts'` without a total."""
    if unit in ("B", "bytes"):
        return human_bytes(completed) if total is None else f"{human_bytes(completed)} of {human_bytes(total)}"
    counted = f"{completed:,.0f}" if total is None else f"{completed:,.0f} of {total:,.0f}"
    return f"{counted} {unit}".rstrip()


def _make_bars() -> rich.progress.Progress:
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.progress import Task as RichTask
    from rich.text import Text

    from reviver.cli.output import make_console

    class StateColumn(ProgressColumn):
        """Done, rate and time left in our own words."""

        def render(self, task: RichTask) -> Text:
            unit = str(task.fields["unit"])
            parts = (
                done_text(task.completed, task.total, unit),
                rate_text(task.speed, unit),
                left_text(task.time_remaining),
            )
            return Text(" · ".join(part for part in parts if part))

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        StateColumn(),
        console=make_console(sys.stderr),
        transient=True,
        refresh_per_second=5,
        redirect_stdout=False,
        redirect_stderr=False,
    )
