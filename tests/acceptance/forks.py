"""The command line in children of one process that has imported everything: killed at a moment, or left without a disk.

Run as a program, this is that process: it imports and then forks a child for every request that it reads. It does no work of its
own and has one thread, so that a child begins as a fresh interpreter would that has just imported the same.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import faulty_disk

MODULES = (
    "torch",
    "safetensors.torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
)
_MS_REMOUNT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; None where it was killed.
        out, err: what it said.
        seconds: from the fork to the end.
        calls: how many calls there were of each kind that wrote below the faulty folder, if one was named.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    calls: Mapping[str, int]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Forks:
    """That process, as its user sees it.

    Args:
        disk: a folder on which a small file system of its own is mounted, which nobody else sees but through `view`.
    """

    def __init__(self, disk: Path | None = None) -> None:
        private = [] if disk is None else ["unshare", "--user", "--map-root-user", "--mount"]
        where = [] if disk is None else [str(disk)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REVIVER_")}
        self._process = subprocess.Popen(
            [*private, sys.executable, "-W", "ignore", __file__, *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**clean, "HF_HUB_OFFLINE": "1"},
        )
        assert self._read() == {"threads": 1}
        self._disk = disk
        self.view = Path() if disk is None else Path(f"/proc/{self._process.pid}/root", *disk.parts[1:])
        """Where the mounted file system is for everybody else."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def inside(self, path: Path) -> str:
        """Return what the commands call a path below `view`."""
        return str(path if self._disk is None else self._disk / path.relative_to(self.view))

    def run(
        self,
        *arguments: str | Path,
        kill_at: float | None = None,
        fill_at: float | None = None,
        fault: faulty_disk.Fault | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run one command to its end.

        Args:
            arguments: of the command line.
            kill_at: SIGKILL it after so many seconds.
            fill_at: after so many seconds nothing is left on the small file system.
            fault: what goes wrong below a folder; only counts, where it says that nothing does.
            environment: more variables.
        """
        return Ended(
            **self._ask(
                arguments=[*map(str, arguments)],
                kill_at=kill_at,
                fill_at=fill_at,
                fault=None if fault is None else fault.to_record(),
                environment=dict(environment or {}),
            )
        )

    def remount(self, options: str) -> None:
        """Mount the small file system again, with other options: `size=1m`, `ro`."""
        assert self._ask(remount=options) == {}

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


# The process that forks.

SIZE = "size=96m"


def _serve(disk: str | None) -> None:
    if disk is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", SIZE, "none", disk], check=True)
    for name in MODULES:
        import_module(name)
    from reviver.cli import app
    from reviver.editing import preparation

    # The verbs are imported by their commands as they run.
    verbs = Path(app.__file__).parents[1] / "verbs"
    for path in verbs.glob("[a-z]*.py"):
        import_module(f"reviver.verbs.{path.stem}")
    for name in app.COMMANDS:
        app.load_command(name)
    # What is saved every half a minute of a long pass shall be saved, and found again, in one of half a second.
    preparation.SAVE_SECONDS = 0.0
    _answer({"threads": len(os.listdir("/proc/self/task"))})
    for line in sys.stdin:
        request = json.loads(line)
        if "remount" in request:
            _remount(disk, request["remount"])
            _answer({})
        else:
            _answer(_run(disk, **request))


def _answer(record: Mapping[str, object]) -> None:
    print(json.dumps(record), flush=True)


def _remount(disk: str | None, options: str) -> None:
    assert disk is not None
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def _fill(disk: str | None) -> None:
    """Make the small file system as small as what it holds."""
    assert disk is not None
    there = os.statvfs(disk)
    size = (there.f_blocks - there.f_bfree) * there.f_frsize
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.mount(None, disk.encode(), None, _MS_REMOUNT, f"size={size}".encode()):
        # It has grown since.
        size += there.f_frsize


def _run(
    disk: str | None,
    arguments: list[str],
    kill_at: float | None,
    fill_at: float | None,
    fault: dict[str, Any] | None,
    environment: dict[str, str],
) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as calls:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.environ.update(environment)
            code = 99
            try:
                code = _main(arguments, fault, calls.fileno())
            finally:
                os._exit(code)
        waiting = os.pidfd_open(child)
        try:
            if fill_at is not None and not select.select([waiting], [], [], fill_at)[0]:
                _fill(disk)
            if not select.select([waiting], [], [], kill_at)[0]:
                os.kill(child, signal.SIGKILL)
            _, state = os.waitpid(child, 0)
        finally:
            os.close(waiting)
        seconds = time.monotonic() - start
        texts = []
        for file in (out, err, calls):
            file.seek(0)
            texts.append(file.read().decode())
    return {
        "code": None if os.WIFSIGNALED(state) else os.WEXITSTATUS(state),
        "out": texts[0],
        "err": texts[1],
        "seconds": seconds,
        "calls": json.loads(texts[2] or "{}"),
    }


def _main(arguments: list[str], fault: dict[str, Any] | None, calls: int) -> int:
    from reviver.cli import app

    disk = None if fault is None else faulty_disk.install(faulty_disk.Fault(**fault))
    sys.argv = ["reviver", *arguments]
    try:
        app.main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(end.code or 0)
    finally:
        if disk is not None:
            disk.write(calls, json.dumps(disk.seen).encode())


if __name__ == "__main__":
    _serve(sys.argv[1] if len(sys.argv) > 1 else None)
    # The libraries take seconds to take themselves apart.
    os._exit(0)
