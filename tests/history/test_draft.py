"""A version exists wholly or not at all, whenever the process that makes it dies."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import workspaces
from crashes import killed_at

from reviver import files
from reviver.errors import ManifestError, ResourceError, UnfinishedError
from reviver.history.workspace import Workspace
from reviver.verbs.status import status
from reviver.verbs.verify import verify


@pytest.fixture
def prepared(workspace: Workspace, tmp_path: Path) -> Path:
    """A workspace with v1, and beside it the two finished folders of a v2."""
    workspaces.add_version(
        workspace, [workspaces.make_fact("Rome", "Peru")], {workspaces.FIRST: workspaces.low_rank(1)}
    )
    with workspace.draft("apply") as draft:
        facts = [workspaces.make_fact("Oslo", "Chile")]
        workspaces.fill_draft(workspace, draft, facts, {workspaces.SECOND: workspaces.low_rank(2)})
        shutil.copytree(draft.edits_folder, tmp_path / "edits-v2")
        shutil.copytree(draft.checkpoint_folder, tmp_path / "checkpoint-v2")
    (tmp_path / "memory-v2").mkdir()
    (tmp_path / "memory-v2" / "keys.safetensors").write_bytes(b"keys")
    return tmp_path


def copy_of(prepared: Path, name: str) -> Workspace:
    return Workspace(Path(shutil.copytree(prepared / "work", prepared / name)))


def commit(prepared: Path, workspace: Workspace) -> None:
    with workspace.draft("apply") as draft:
        shutil.copytree(prepared / "edits-v2", draft.edits_folder, dirs_exist_ok=True)
        shutil.copytree(prepared / "checkpoint-v2", draft.checkpoint_folder)
        shutil.copytree(prepared / "memory-v2", draft.memory_folder)
        draft.commit({"facts": 1})


def public(workspace: Workspace) -> dict[str, bytes]:
    """Return what everybody sees, history and checkpoints, and what goes with it, without what a dead process left."""
    folders = workspace.edits, workspace.checkpoints, workspace.memory
    files = {path: data for folder in folders for path, data in workspaces.snapshot(folder).items()}
    return {path: data for path, data in files.items() if ".partial" not in path}


def every_crash(prepared: Path, action: Callable[[Workspace], None], check: Callable[[Workspace], None]) -> int:
    """Kill `action` before each of its calls and `check` the workspace that is left; return how often."""
    call = 1
    while True:
        workspace = copy_of(prepared, f"crash-{call}")
        if not killed_at(call, lambda: action(workspace)):  # noqa: B023 - called at once.
            return call - 1
        check(workspace)
        shutil.rmtree(workspace.root)
        call += 1


def test_a_commit_killed_at_every_instant_leaves_all_or_nothing(prepared: Path) -> None:
    done = copy_of(prepared, "done")
    before = public(done)
    commit(prepared, done)
    after = public(done)
    seen = set()

    def check(workspace: Workspace) -> None:
        # Before anybody takes the lock: readers see one of the two states, and never half of one.
        exists = "v2" in workspace.version_names()
        seen.add(exists)
        assert workspace.head() == ("v2" if exists else "v1")
        assert [one.version for one in workspace.operations()] == [None, "v1", "v2"][: 3 if exists else 2]
        assert workspace.next_number() >= (3 if exists else 2)
        report = status(workspace.root)
        assert (report.head, report.problems) == (workspace.head(), ())
        assert verify(workspace.root).ok
        # The next writer cleans up, and both states are whole.
        with workspace.lock("apply"):
            pass
        assert public(workspace) == (after if exists else before)
        assert status(workspace.root).clean
        assert workspace.head() == ("v2" if exists else "v1")
        assert not workspace.pending_file.exists()
        if not exists:
            commit(prepared, workspace)
            assert public(workspace) == after
            assert verify(workspace.root).ok

    assert every_crash(prepared, lambda workspace: commit(prepared, workspace), check) > 40
    assert seen == {False, True}


def test_a_head_that_moves_is_killed_at_every_instant(prepared: Path) -> None:
    seen = set()

    def move(workspace: Workspace) -> None:
        with workspace.lock("undo"):
            workspace.move_head("undo", "v0", {"undoes": 2})

    def check(workspace: Workspace) -> None:
        head = workspace.head()
        seen.add(head)
        verbs = [one.verb for one in workspace.operations()]
        assert verbs == ["init", "apply"] + ["undo"] * (head == "v0")
        with workspace.lock("status"):
            pass
        assert workspace.head() == head
        assert [one.verb for one in workspace.operations()] == verbs
        assert [one.number for one in workspace.operations()] == list(range(1, len(verbs) + 1))
        assert status(workspace.root).clean

    assert every_crash(prepared, move, check) > 15
    assert seen == {"v0", "v1"}


def test_a_recovery_that_is_killed_is_recovered(prepared: Path) -> None:
    half = copy_of(prepared, "half")
    # The edits' rename is the commit; find the call after which the version exists, and die there.
    call = 1
    while True:
        shutil.rmtree(half.root)
        half = copy_of(prepared, "half")
        assert killed_at(call, lambda: commit(prepared, half))  # noqa: B023 - called at once.
        if "v2" in half.version_names():
            break
        call += 1
    assert half.pending_file.exists()
    prepared_half = prepared / "again"
    shutil.copytree(half.root, prepared_half / "work")

    def recover(workspace: Workspace) -> None:
        with workspace.lock("apply"):
            pass

    def check(workspace: Workspace) -> None:
        assert workspace.head() == "v2"
        recover(workspace)
        assert [one.version for one in workspace.operations()] == [None, "v1", "v2"]
        assert status(workspace.root).clean

    assert every_crash(prepared_half, recover, check) > 10


def test_an_error_inside_a_draft_leaves_nothing(workspace: Workspace) -> None:
    before = workspaces.snapshot(workspace.root)
    with pytest.raises(RuntimeError), workspace.draft("apply") as draft:
        draft.checkpoint_folder.mkdir()
        (draft.checkpoint_folder / "config.json").write_bytes(b"{}")
        (draft.edits_folder / "facts.jsonl").write_bytes(b"")
        raise RuntimeError
    after = workspaces.snapshot(workspace.root)
    assert after.keys() - before.keys() <= {".reviver/lock"}
    assert [path.name for path in workspace.edits.iterdir()] == [".gitattributes"]


def test_an_interrupt_inside_the_commit_ends_in_one_of_the_two_states(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, deltas = [workspaces.make_fact("Rome", "Peru")], {workspaces.FIRST: workspaces.low_rank(1)}
    real = os.rename

    def interrupted(source: object, target: object) -> None:
        real(source, target)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="v1 is made and is the head"), workspace.draft("apply") as draft:
        workspaces.fill_draft(workspace, draft, facts, deltas, checkpoint=False)
        monkeypatch.setattr(os, "rename", interrupted)
        draft.commit()
    monkeypatch.undo()
    assert workspace.head() == "v1"
    assert not workspace.pending_file.exists()
    assert status(workspace.root).clean


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_an_interrupted_commit_is_whole_and_told_as_done_or_is_not_there(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    done = copy_of(prepared, "done")
    before = public(done)
    commit(prepared, done)
    after = public(done)
    real = getattr(os, call)
    seen = set()
    for stop_at in itertools.count(1):
        workspace = copy_of(prepared, f"interrupt-{stop_at}")
        left = stop_at

        def interrupted(*arguments: object) -> object:
            nonlocal left
            left -= 1
            found = real(*arguments)
            if left == 0:
                raise KeyboardInterrupt
            return found

        with monkeypatch.context() as patched:
            patched.setattr(os, call, interrupted)
            try:
                commit(prepared, workspace)
            except KeyboardInterrupt as error:
                told = error.args
            else:
                break
        exists = "v2" in workspace.version_names()
        assert told == (("v2 is made and is the head",) if exists else ())
        assert public(workspace) == (after if exists else before)
        assert status(workspace.root).clean
        seen.add(exists)
    assert left > 0 and (seen == {True, False} or call == "rename")


def test_an_interrupted_undo_is_told_as_done_or_has_not_happened(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    seen = set()
    for stop_at in itertools.count(1):
        workspace = copy_of(prepared, f"interrupt-{stop_at}")
        left = stop_at

        def interrupted(descriptor: int) -> None:
            nonlocal left
            left -= 1
            real(descriptor)
            if left == 0:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", interrupted)
            try:
                with workspace.lock("undo"):
                    workspace.move_head("undo", "v0")
            except KeyboardInterrupt as error:
                told = error.args
            else:
                break
        assert told == (("the head is v0 now",) if workspace.head() == "v0" else ())
        seen.add(workspace.head())
    assert seen == {"v0", "v1"}


def test_a_version_of_the_same_name_that_came_from_elsewhere_is_not_taken_for_the_one_that_was_made(
    prepared: Path,
) -> None:
    """Killed between the intent and the commit; then a pull brings another v2."""
    workspace = copy_of(prepared, "killed")
    call = 1
    while not workspace.pending_file.exists():
        shutil.rmtree(workspace.root)
        workspace = copy_of(prepared, "killed")
        assert killed_at(call, lambda: commit(prepared, workspace))  # noqa: B023 - called at once.
        call += 1
    while not workspace.checkpoint("v2").exists():
        shutil.rmtree(workspace.root)
        workspace = copy_of(prepared, "killed")
        assert killed_at(call, lambda: commit(prepared, workspace))  # noqa: B023 - called at once.
        call += 1
    assert workspace.head() == "v1"
    other = copy_of(prepared, "other")
    deltas = {workspaces.FIRST: workspaces.low_rank(7)}
    theirs = workspaces.add_version(other, [workspaces.make_fact("Bern", "Fiji")], deltas)
    shutil.copytree(theirs.folder, workspace.edits / "v2")
    assert workspace.head() == "v1"
    with workspace.lock("gc"):
        pass
    assert workspace.head() == "v1" and workspace.version("v2").id == theirs.id
    assert not workspace.checkpoint("v2").exists()
    assert status(workspace.root).clean


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_a_full_disk_is_told_and_leaves_a_clean_state(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = getattr(os, call)
    for fail_at in range(1, 9):
        workspace = copy_of(prepared, f"full-{fail_at}")
        left = fail_at

        def full(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            try:
                commit(prepared, workspace)
            except ResourceError as error:
                assert "no space left" in error.message
        with workspace.lock("apply"):
            pass
        assert status(workspace.root).clean
        assert workspace.head() == workspace.version_names()[-1]


@pytest.mark.parametrize("place", ["HEAD", "operations.jsonl"])
def test_whoever_must_not_run_it_again_is_told_so(prepared: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The disk fills up behind the commit: the version exists, and the next command that writes does the rest."""
    real = os.open

    def full(path: Any, *arguments: Any, **options: Any) -> int:
        if place in str(path) and arguments[0] & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **options)

    workspace = copy_of(prepared, "full")
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(UnfinishedError, match=r"v2 is made and is the head, but .* no space left"):
            commit(prepared, workspace)
        assert workspace.head() == "v2"
        with pytest.raises(ResourceError) as caught, workspace.lock("undo"):
            pass
        assert not isinstance(caught.value, UnfinishedError), "what is not done now is an earlier command's"
    with workspace.lock("apply"):
        pass
    assert [one.version for one in workspace.operations()] == [None, "v1", "v2"]
    with workspace.lock("undo"), monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(UnfinishedError, match="the head is v1 now"):
            workspace.move_head("undo", "v1")
    assert workspace.head() == "v1"
    assert status(workspace.root).clean


def test_an_intent_that_cannot_be_made_durable_is_none(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, deltas = [workspaces.make_fact("Rome", "Peru")], {workspaces.FIRST: workspaces.low_rank(1)}
    workspaces.add_version(workspace, facts, deltas, checkpoint=False)
    real = files.fsync_folder

    def broken(path: Path) -> None:
        if workspace.pending_file.exists():
            raise OSError(errno.EIO, "Input/output error")
        real(path)

    with workspace.lock("undo"), monkeypatch.context() as patched:
        patched.setattr(files, "fsync_folder", broken)
        with pytest.raises(ResourceError) as caught:
            workspace.move_head("undo", "v0")
    assert not isinstance(caught.value, UnfinishedError)
    assert workspace.head() == "v1"


def test_a_draft_without_its_files_is_not_committed(workspace: Workspace) -> None:
    with workspace.draft("apply") as draft, pytest.raises(ManifestError, match=r"has no `facts.jsonl`"):
        draft.commit()
    assert workspace.version_names() == []


def test_a_draft_with_another_versions_manifest_is_not_committed(prepared: Path) -> None:
    workspace = copy_of(prepared, "work2")
    with workspace.draft("apply") as draft, pytest.raises(ManifestError, match="manifest of v1"):
        shutil.copytree(workspace.edits / "v1", draft.edits_folder, dirs_exist_ok=True)
        draft.commit()
    assert workspace.version_names() == ["v1"]


def test_numbers_are_never_used_again(workspace: Workspace) -> None:
    def add(seed: int) -> str:
        facts = [workspaces.make_fact("Rome", f"Peru {seed}")]
        deltas = {workspaces.FIRST: workspaces.low_rank(seed)}
        return workspaces.add_version(workspace, facts, deltas, parent="v0", checkpoint=False).name

    assert [add(1), add(2)] == ["v1", "v2"]
    with workspace.lock("undo"):
        workspace.move_head("undo", "v1")
    assert add(3) == "v3"
    for name in ("v3", "v2"):
        shutil.rmtree(workspace.edits / name)
    assert add(4) == "v4"
    shutil.rmtree(workspace.edits / "v4")
    workspace.checkpoint("v7").mkdir()
    assert add(5) == "v8"
    with workspace.lock("import"):
        workspace.record("import", {"arrivals": {"v9": "v1", "v10": "v2"}})
    assert add(6) == "v11"


def test_leftovers_of_dead_processes_go_and_other_files_stay(workspace: Workspace) -> None:
    gone = [
        workspace.edits / ".v4.partial",
        workspace.checkpoints / ".v4.partial",
        workspace.private / ".HEAD.abc.partial",
        workspace.statistics / ".x.partial",
        workspace.edits / ".tags.json.1.partial",
        workspace.edits / "v1" / "evaluations" / ".drift.json.1.partial",
        workspace.memory / "ab" / ".x.partial",
        workspace.staging / "rounds" / ".000001.json.1.partial",
    ]
    kept = [workspace.staging / "round.safetensors", workspace.edits / "README.md", workspace.root / "x.partial"]
    for path in gone:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path in (gone[0], gone[1]):
        path.mkdir()
        (path / "file").write_bytes(b"x")
    outside = workspace.root.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    (gone[0] / "link").symlink_to(outside)
    (workspace.checkpoints / ".v5.partial").symlink_to(outside)
    for path in (*gone[2:], *kept):
        path.write_bytes(b"x")
    assert len(status(workspace.root).leftovers) == 9
    with workspace.lock("apply"):
        pass
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
    assert (outside / "precious").exists()
    assert status(workspace.root).leftovers == ()
