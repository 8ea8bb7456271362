"""The lock: one writer at a time, and a dead one holds nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reviver.errors import LockedError, ResourceError
from reviver.history.lock import is_held, read_holder
from reviver.history.workspace import Workspace

HOLD = """
import sys, time
from pathlib import Path
from reviver.history.workspace import Workspace
with Workspace.open(Path(sys.argv[1])).lock("apply"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(workspace: Workspace):  # type: ignore[no-untyped-def]
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(workspace.root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_it(workspace: Workspace, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError) as caught, workspace.lock("undo"):
        pass
    assert f"`reviver apply` (process {holder.pid} on {os.uname().nodename}, since 20" in caught.value.message
    assert caught.value.hint is not None
    assert workspace.head() == "v0", "reading needs no lock"


def test_a_killed_process_holds_nothing(workspace: Workspace, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workspace.lock("undo"):
        found = read_holder(workspace.private / "lock")
        assert found is not None
        assert (found.pid, found.verb) == (os.getpid(), "undo")


def test_a_disk_without_a_free_byte_can_be_locked(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gc` has to run there."""

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with workspace.lock("gc"):
        assert is_held(workspace.lock_file)


def test_a_thread_takes_it_again_and_another_thread_does_not(workspace: Workspace) -> None:
    refused = []

    def other() -> None:
        try:
            with workspace.lock("apply"):
                pass
        except LockedError as error:
            refused.append(error)

    with workspace.lock("init"):
        with workspace.lock("init"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with workspace.lock("apply"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 5000, b"[" * 4000])
def test_a_damaged_lock_file_is_no_obstacle(workspace: Workspace, content: bytes) -> None:
    path = workspace.private / "lock"
    path.write_bytes(content)
    assert read_holder(path) is None
    with workspace.lock("apply"):
        pass


def test_terminal_escapes_in_the_lock_file_are_not_shown(workspace: Workspace) -> None:
    path = workspace.private / "lock"
    path.write_text('{"pid": 1, "host": "\\u001b[31mh", "verb": "v\\n", "since": "s"}')
    found = read_holder(path)
    assert found is not None
    assert found.host.isprintable() and found.verb.isprintable()


def test_a_read_only_workspace_is_told_as_such(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, who may write anywhere; so the system's answer is played.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResourceError, match="cannot write to") as caught, workspace.lock("apply"):
        pass
    assert caught.value.hint is not None


def test_the_lock_is_not_a_way_out_of_the_workspace(workspace: Workspace, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (workspace.private / "lock").unlink()
    (workspace.private / "lock").symlink_to(target)
    with pytest.raises(ResourceError), workspace.lock("apply"):
        pass
    assert target.read_bytes() == b"precious"
