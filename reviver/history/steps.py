"""What `undo` and `redo` go along: the operation log read as an editor's two stacks.

An operation that moves the head goes on the first stack and empties the second; `undo` moves the top of the first to
the second, `redo` moves it back. Operations that leave the head where it is (`init`, `push`, `tag`, `gc`) change neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reviver.history.operations import Operation

UNDO, REDO = "undo", "redo"
UNDOES, REDOES = "undoes", "redoes"
"""Under these keys an operation's `detail` holds the number of the operation that it takes back, or does again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One move of the head that can be taken back, or was."""

    number: int
    """Of the operation that made the move; where the log does not hold it, of the `undo` that took it back."""
    verb: str
    time: str | None
    """When the move was made; None where the log does not reach back so far."""
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Steps:
    """Both stacks, the next to be taken last."""

    undoable: tuple[Step, ...]
    redoable: tuple[Step, ...]

    def next_undo(self, head: str) -> Step | None:
        """Return what `undo` takes back; None where the log does not explain how the head came to be `head`."""
        return self.undoable[-1] if self.undoable and self.undoable[-1].after == head else None

    def next_redo(self, head: str) -> Step | None:
        """Return what `redo` does again; None where nothing was undone, or the head was moved past the log."""
        return self.redoable[-1] if self.redoable and self.redoable[-1].before == head else None


def read_steps(operations: Iterable[Operation]) -> Steps:
    """Return both stacks as the log leaves them; `operations` oldest first."""
    undoable: list[Step] = []
    redoable: list[Step] = []
    for one in operations:
        if one.verb == UNDO:
            if undoable and undoable[-1].number == one.detail.get(UNDOES):
                redoable.append(undoable.pop())
            else:
                # The log does not reach back to the move (a history that was cloned): the head went to its parent.
                redoable.append(
                    Step(number=one.number, verb="apply", time=None, before=one.head_after, after=one.head_before)
                )
        elif one.verb == REDO:
            if redoable and redoable[-1].number == one.detail.get(REDOES):
                undoable.append(redoable.pop())
        elif one.head_before != one.head_after:
            undoable.append(
                Step(number=one.number, verb=one.verb, time=one.time, before=one.head_before, after=one.head_after)
            )
            redoable.clear()
    return Steps(tuple(undoable), tuple(redoable))
