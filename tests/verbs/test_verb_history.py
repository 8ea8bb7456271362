"""tag, redo, gc and import: what they say, what they change, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import workspaces

from reviver.errors import UsageError, VersionNotFoundError, WorkspaceError
from reviver.history.names import read_tags
from reviver.history.workspace import Workspace
from reviver.verbs.checkout import checkout
from reviver.verbs.gc import gc
from reviver.verbs.redo import redo
from reviver.verbs.tag import delete_tag, list_tags, tag
from reviver.verbs.undo import undo
from reviver.verbs.verify import verify

Check = Callable[..., dict[str, Any]]
Call = Callable[..., Any]


# tag


def test_tag_names_a_version_in_every_mode(chained: Workspace, check: Check) -> None:
    id = chained.version("v2").id
    fields = check(
        chained, "tag", "good", "v2", human=[f"good names v2 ({id[:12]})"], quiet="good", before=_no_tags(chained)
    )
    assert (fields["did"], fields["tag"]) == ("set", {"name": "good", "id": id, "version": "v2"})
    fields = check(chained, "tag", "good", "v2", human=["good names already v2"], quiet="good")
    assert fields["did"] == "kept"
    fields = check(chained, "tag", "now", human=["now names v3"], quiet="now", before=_no_tags(chained))
    assert chained.resolve("now") == "v3"
    tag(chained.root, "good", "v2")
    fields = check(chained, "tag", human=["tag   version  id", "good  v2       ", "now   v3"], quiet="good now")
    assert [one["name"] for one in fields["tags"]] == ["good", "now"]
    operation = chained.operations()[-1]
    assert (operation.verb, operation.head_before, operation.head_after) == ("tag", "v3", "v3")
    assert operation.detail == {"tag": "good", "id": id}
    assert undo(chained.root).head_after == "v2", "a tag is no step of undo"


def _no_tags(workspace: Workspace) -> Callable[[], None]:
    return lambda: workspace.tags_file.unlink(missing_ok=True)


def test_the_file_of_tags_has_one_order(chained: Workspace) -> None:
    for name in ("zebra", "apple", "Mango"):
        tag(chained.root, name, "v1")
    first = chained.tags_file.read_bytes()
    chained.tags_file.unlink()
    for name in ("Mango", "zebra", "apple"):
        tag(chained.root, name, "v1")
    assert chained.tags_file.read_bytes() == first
    assert list(json.loads(first)["tags"]) == ["Mango", "apple", "zebra"]


@pytest.mark.parametrize(
    "name",
    [
        "v7",
        "V7",
        "v0",
        "v01",
        "head",
        "HEAD",
        "base",
        "cafe",
        "CAFE",
        "ab" * 32,
        "",
        "-x",
        ".x",
        "a b",
        "a..b",
        "a/b",
        "é",
        "x" * 101,
        "\x1b",
        "a\n",
    ],
)
def test_names_that_no_tag_may_have(chained: Workspace, name: str) -> None:
    with pytest.raises(UsageError):
        tag(chained.root, name, "v1")
    assert not chained.tags_file.exists()


def test_a_tag_is_never_moved_and_can_be_taken_away(chained: Workspace, call: Call) -> None:
    tag(chained.root, "good", "v1")
    outcome = call("tag", "good", "v2", "-C", str(chained.root))
    assert outcome.code == 1
    assert "error: the tag `good` names v1 already\n" in outcome.stderr
    assert f"hint: take it away first with `reviver tag --delete good -C {chained.root}`" in outcome.stderr
    assert chained.resolve("good") == "v1"
    outcome = call("tag", "-d", "good", "-C", str(chained.root))
    assert (outcome.code, outcome.stdout) == (0, f"good is gone; it named v1 ({chained.version('v1').id[:12]})\n")
    assert read_tags(chained.tags_file) == {}
    with pytest.raises(VersionNotFoundError, match="there is no tag `good`"):
        delete_tag(chained.root, "good")
    for arguments in (["--delete"], ["--delete", "a", "v1"]):
        assert call("tag", *arguments, "-C", str(chained.root)).code == 2
    with pytest.raises(UsageError, match="the base needs no tag"):
        tag(chained.root, "origin", "base")


def test_a_tag_of_a_version_that_is_not_here(chained: Workspace, call: Call) -> None:
    tag(chained.root, "good", "v3")
    shutil.rmtree(chained.edits / "v3")
    assert list_tags(chained.root).tags[0].version is None
    outcome = call("show", "good", "-C", str(chained.root))
    assert outcome.code == 1 and "the tag `good` names the version" in outcome.stderr


# redo


def test_redo_in_every_mode(chained: Workspace, check: Check) -> None:
    def step_back() -> None:
        if chained.head() == "v3":
            undo(chained.root)

    fields = check(
        chained,
        "redo",
        human=["did `apply` of 20", "again: the head is v3, it was v2"],
        quiet="v3",
        before=step_back,
    )
    assert (fields["head_before"], fields["head_after"], fields["redone_verb"]) == ("v2", "v3", "apply")


def test_several_undos_are_redone_one_by_one(chained: Workspace, call: Call) -> None:
    kept = workspaces.snapshot(chained.edits) | workspaces.snapshot(chained.checkpoints)
    assert [undo(chained.root).head_after for _ in range(3)] == ["v2", "v1", "v0"]
    assert [redo(chained.root).head_after for _ in range(3)] == ["v1", "v2", "v3"]
    outcome = call("redo", "-C", str(chained.root))
    assert outcome.code == 1
    assert outcome.stderr.startswith("error: there is nothing to redo: ")
    assert workspaces.snapshot(chained.edits) | workspaces.snapshot(chained.checkpoints) == kept
    assert verify(chained.root).ok
    assert undo(chained.root).head_after == "v2", "what was redone can be undone again"


def test_new_work_ends_what_can_be_redone(chained: Workspace) -> None:
    undo(chained.root)
    tag(chained.root, "here", "head")
    gc(chained.root, ["v1"])
    assert redo(chained.root).head_after == "v3", "an operation that leaves the head where it is ends nothing"
    undo(chained.root)
    workspaces.add_version(chained, [], {workspaces.FIRST: workspaces.low_rank(7)}, checkpoint=False)
    with pytest.raises(WorkspaceError, match="there is nothing to redo"):
        redo(chained.root)


def test_redo_of_a_version_that_is_gone(chained: Workspace) -> None:
    undo(chained.root)
    shutil.rmtree(chained.edits / "v3")
    with pytest.raises(VersionNotFoundError):
        redo(chained.root)
    assert chained.head() == "v2"


# gc


def test_gc_needs_one_scope(chained: Workspace, call: Call) -> None:
    before = workspaces.snapshot(chained.checkpoints)
    for arguments in (
        [],
        ["--dry-run"],
        ["--keep", "1", "--all"],
        ["v1", "--all"],
        ["v1", "--keep", "1"],
        ["--keep", "-1"],
    ):
        outcome = call("gc", *arguments, "-C", str(chained.root))
        assert (outcome.code, outcome.stdout) == (2, "")
        assert outcome.stderr.count("hint: ") == 1
    assert call("gc", "v9", "-C", str(chained.root)).code == 1
    assert workspaces.snapshot(chained.checkpoints) == before


def test_gc_in_every_mode(chained: Workspace, check: Check) -> None:
    shutil.rmtree(chained.checkpoint("v1"))
    checkout(chained.root, "v1", link_mode="copy")
    size = sum(len(data) for data in workspaces.snapshot(chained.checkpoint("v1")).values())

    def write() -> None:
        checkout(chained.root, "v1", link_mode="copy")

    fields = check(
        chained,
        "gc",
        "v1",
        human=["removed 1 checkpoint: v1", "freed ", "kept v2, v3"],
        stderr=["hint: write one again with `reviver checkout v1`"],
        quiet=str(size),
        before=write,
    )
    assert fields["removed"] == ["v1"] and fields["kept"] == ["v2", "v3"] and fields["bytes_freed"] == size
    assert not chained.checkpoint("v1").exists()
    assert chained.operations()[-1].detail == {"removed": ["v1"], "bytes_freed": size}
    fields = check(chained, "gc", "v1", human=["nothing to remove", "not written: v1"], quiet="0")
    assert fields["not_written"] == ["v1"]
    kept = workspaces.snapshot(chained.checkpoint("v2"))
    gc(chained.root, everything=True)
    checkout(chained.root, "v2")
    assert workspaces.snapshot(chained.checkpoint("v2")) == kept


def test_a_dry_run_tells_what_the_run_does_and_does_nothing(chained: Workspace) -> None:
    (chained.checkpoints / ".v9.partial").mkdir()
    (chained.checkpoints / ".v9.partial" / "half").write_bytes(b"x" * 500)
    before = workspaces.snapshot(chained.root)
    for scope in ({"keep": 1}, {"keep": 0}, {"everything": True}, {"names": ["v2", "head"]}):
        planned = gc(chained.root, dry_run=True, **scope)  # type: ignore[arg-type]
        assert workspaces.snapshot(chained.root) == before
        copy = Workspace(chained.root.parent / "copy")
        shutil.copytree(chained.root, copy.root, symlinks=True)
        for path in copy.checkpoints.rglob("*"):
            # The copy has no links to the base any more; put them back as they were.
            original = chained.root / path.relative_to(copy.root)
            if original.is_file() and original.stat().st_nlink > 1:
                path.unlink()
                os.link(original, path)
        done = gc(copy.root, **scope)  # type: ignore[arg-type]
        assert done == replace(planned, dry_run=False)
        assert done.leftovers == ("checkpoints/.v9.partial",) and done.bytes_freed >= 500
        assert not (copy.checkpoints / ".v9.partial").exists()
        assert workspaces.snapshot(copy.edits) == workspaces.snapshot(chained.edits), "never history"
        shutil.rmtree(copy.root)


def test_the_heads_checkpoint_goes_only_by_name_or_with_all(chained: Workspace) -> None:
    undo(chained.root)
    undo(chained.root)
    assert chained.head() == "v1"
    assert gc(chained.root, keep=1).removed == ("v2", "v3")
    assert gc(chained.root, keep=0).removed == ()
    assert gc(chained.root, ["head"]).removed == ("v1",)
    checkout(chained.root, "v1")
    checkout(chained.root, "base")
    (chained.checkpoints / "v12").mkdir()
    report = gc(chained.root, everything=True)
    assert report.removed == ("v0", "v1")
    assert report.warnings == ("`checkpoints/v12` belongs to no version and stays",)


def test_gc_keeps_what_could_not_be_written_again(chained: Workspace, call: Call) -> None:
    (chained.edits / "v2" / "patch.safetensors").write_bytes(b"")
    report = gc(chained.root, everything=True)
    assert report.removed == ("v1", "v3")
    assert len(report.warnings) == 1 and "`checkpoints/v2` stays" in report.warnings[0]
    outcome = call("gc", "v2", "-C", str(chained.root))
    assert outcome.code == 1 and "patch.safetensors" in outcome.stderr
    shutil.rmtree(Path(chained.pin().folder))
    outcome = call("gc", "--all", "-C", str(chained.root))
    assert outcome.code == 1 and "of the base is missing" in outcome.stderr
    assert chained.checkpoint("v2").is_dir()


# import


def test_import_in_every_mode(chained: Workspace, tmp_path: Path, check: Check) -> None:
    theirs = Workspace.create(tmp_path / "theirs")
    shutil.copytree(chained.edits, theirs.edits, dirs_exist_ok=True)
    shutil.rmtree(chained.edits / "v3")
    (chained.private / "HEAD").write_bytes(b"v2\n")
    chained.operations_file.unlink()
    kept = {name: (chained.edits / name) for name in ("v1", "v2")}
    assert all(path.is_dir() for path in kept.values())

    def forget() -> None:
        for name in chained.version_names():
            if name not in kept:
                shutil.rmtree(chained.edits / name)
        shutil.rmtree(chained.checkpoint("v3"), ignore_errors=True)
        chained.operations_file.unlink(missing_ok=True)

    fields = check(
        chained,
        "import",
        str(theirs.root),
        human=["v3       v3   ", "branch", "2 versions of it were here already"],
        stderr=["hint: prove them with `reviver verify`"],
        quiet="v3",
        before=forget,
    )
    assert [(one["was"], one["version"], one["parent"]) for one in fields["imported"]] == [("v3", "v3", "v1")]
    fields = check(chained, "import", str(theirs.edits), human=["nothing to import: 3 versions"], quiet="")
    assert (fields["imported"], fields["already"]) == ([], 3)
