"""The one way in which long work below the command line tells how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1) -> None:
        """Say that `amount` more units are done."""


class Progress(Protocol):
    """What a verb reports to while it works; the command line draws it, a library caller may ignore it."""

    def task(self, name: str, *, total: float | None = None, unit: str = "") -> AbstractContextManager[Task]:
        """Begin a piece of work of `total` units; the context ends it."""

    def note(self, text: str) -> None:
        """Tell the person one line that is worth knowing while the work goes on."""


class _NullTask:
    def advance(self, amount: float = 1) -> None:
        """Do nothing."""


class NullProgress:
    """A progress that says nothing."""

    @contextmanager
    def task(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """Begin a piece of work that nobody watches."""
        yield _NullTask()

    def note(self, text: str) -> None:
        """Do nothing."""
