"""Running the command line in another process, with and without a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = [sys.executable, str(Path(__file__).with_name("sample_verbs.py"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def on_terminal(arguments: Sequence[str], **environment: str) -> Outcome:
    """Run the sample program with stdout and stderr on one pseudo-terminal, whose text is `stdout` of the outcome."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    process = subprocess.Popen([*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    shown = bytearray()
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # Linux reports the end of a terminal whose last writer is gone as an error.
    finally:
        os.close(ours)
    return Outcome(code=process.wait(timeout=30), stdout=shown.decode(), stderr="")
