"""Killing a process at every instant at which it talks to the disk."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

CALLS = ("open", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "ftruncate", "pwrite", "link", "symlink")


def killed_at(call: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that kills itself with SIGKILL before its `call`-th call to the file system.

    What the disk holds after one call is what it holds before the next, so this meets every state there is.

    Returns:
        False where the action ended before its `call`-th call.
    """
    with warnings.catch_warnings():
        # The child only touches files; that numpy keeps idle threads in the parent does not matter to it.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            _kill_at(call)
            action()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    _, state = os.waitpid(child, 0)
    if os.WIFSIGNALED(state):
        assert os.WTERMSIG(state) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(state) == 0, "the action failed in the child"
    return False


def _kill_at(call: int) -> None:
    left = call

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
