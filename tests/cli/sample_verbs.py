"""Commands that exist only to test what all commands have in common; run this file to run a program that has them."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviver import errors
from reviver.cli import app
from reviver.cli.command import Context, verb
from reviver.cli.options import RankOption
from reviver.cli.output import make_table

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    name: str
    path: Path
    loss: float
    numbers: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def _draw(console: Console, greeting: Greeting) -> None:
    table = make_table("name", "count", right=("count",))
    table.add_row(greeting.name, str(sum(greeting.numbers)))
    console.print(table)
    console.print("done", style="green")


@verb
def greet(
    context: Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom.")] = "world",
    rank: RankOption = None,
) -> None:
    """Greet somebody."""
    context.settings(apply_rank=rank)
    context.output.note("a note")
    context.output.warn("a warning")
    context.output.warn("a warning")
    context.output.hint("a hint")
    greeting = Greeting(
        name=name, path=Path("a/b"), loss=float("nan"), numbers=(1, 2), warnings=("its own warning",) if rank else ()
    )
    context.output.result(greeting, render=_draw, quiet=lambda result: result.name)


@verb
def shout(context: Context, lines: Annotated[int, typer.Option("-n", metavar="N")] = 100_000) -> None:
    """Print many lines."""

    def draw(console: Console, _: Greeting) -> None:
        for number in range(lines):
            console.print(f"line {number}")

    context.output.result(Greeting(name="x", path=Path(), loss=0, numbers=()), render=draw)
    context.output.note("after the result")


@verb
def ask(context: Context) -> None:
    """Ask a question."""
    context.output.note("yes" if context.output.confirm("go on?") else "no")


@verb
def wait(context: Context) -> None:
    """Wait for a signal."""
    context.output.note("waiting")
    time.sleep(60)


@verb
def work(context: Context) -> None:
    """Work with progress."""
    progress = context.output.progress()
    with progress.task("reading", total=4, unit="files") as task:
        for number in range(4):
            task.advance()
            time.sleep(0.15)
            if number == 1:
                progress.note("half of it")


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@verb
def fail(context: Context, kind: Annotated[str, typer.Argument()]) -> None:
    """Fail in a chosen way."""
    if kind == "exit":
        raise typer.Exit(3)
    if kind == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/file")
    if kind == "missing":
        Path("/no/such/file").read_bytes()
    if kind == "memory":
        raise MemoryError
    if kind == "device-memory":
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
    if kind == "defect":
        raise KeyError("over\nthere")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "problem":
        one = ["line 3: bad thing: two"]
        raise errors.FactsError("`facts.jsonl`:3: bad thing: two", hint="correct it", problems=one)
    if kind == "problems":
        problems = [f"line {number}: bad \x1b[31mthing" for number in range(1, 31)]
        raise errors.FactsError("`facts.jsonl` has 30 problems", hint="correct them", problems=problems)
    raise getattr(errors, kind)("what went \x1b[2Jwrong\u202e.", hint="try `this`.")


SAMPLES = {
    function.__name__: app.Entry(__name__, function.__name__, str(function.__doc__).partition("\n")[0], "Samples")
    for function in (greet, shout, ask, wait, work, fail)
}

if __name__ == "__main__":
    app.COMMANDS.update(SAMPLES)
    app.main()
