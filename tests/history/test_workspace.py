"""Where things are, what versions are called, and how a chain is followed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import workspaces

from reviver.errors import (
    BaseMismatchError,
    ManifestError,
    ReviverError,
    UnsafePathError,
    VersionNotFoundError,
    WorkspaceError,
)
from reviver.history.chain import chain_deltas, check_chain
from reviver.history.names import read_tags, write_tags
from reviver.history.workspace import Workspace, require_head


def test_no_workspace_is_told_with_the_command_that_makes_one(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "is not a workspace"), (tmp_path / "none", "does not exist")):
        with pytest.raises(WorkspaceError, match=message) as caught:
            Workspace.open(folder)
        assert "reviver init" in (caught.value.hint or "")


def test_creating_twice_changes_nothing(workspace: Workspace) -> None:
    before = workspaces.snapshot(workspace.root)
    Workspace.create(workspace.root)
    assert workspaces.snapshot(workspace.root) == before


def test_git_sees_the_history_only(workspace: Workspace) -> None:
    for folder in (workspace.checkpoints, workspace.private):
        assert (folder / ".gitignore").read_text().splitlines()[-1] == "*"
    assert not (workspace.edits / ".gitignore").exists()


def test_a_clone_with_other_line_ends_has_the_same_history(chained: Workspace, tmp_path: Path) -> None:
    def git(*arguments: str | Path) -> None:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(
            ["git", *identity, *arguments], cwd=chained.root, env=environment, check=True, capture_output=True
        )

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "history")
    git("clone", "-q", "-c", "core.autocrlf=true", chained.root, tmp_path / "clone")
    assert workspaces.snapshot(tmp_path / "clone" / "edits") == workspaces.snapshot(chained.edits)


def test_a_workspace_without_a_base_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="has no base yet"):
        Workspace.create(tmp_path / "x").pin()


def test_names(chained: Workspace) -> None:
    ids = {name: chained.version(name).id for name in ("v1", "v2", "v3")}
    write_tags(chained.tags_file, {"release-1": ids["v2"]})
    for name, expected in {
        "head": "v3",
        "HEAD": "v3",
        "base": "v0",
        "v0": "v0",
        "v2": "v2",
        "head~1": "v1",
        "head~2": "v0",
        "head~": "v1",
        "v2~1": "v1",
        "release-1": "v2",
        "release-1~1": "v1",
        ids["v1"]: "v1",
        ids["v2"][:8]: "v2",
        ids["v2"][:8].upper(): "v2",
        ids["v3"][:8] + "~1": "v1",
    }.items():
        assert chained.resolve(name) == expected
    assert [version.name for version in chained.chain("head")] == ["v1", "v3"]
    assert [version.name for version in chained.chain("v2")] == ["v1", "v2"]
    assert chained.chain("base") == []
    assert chained.version_id("base") == chained.pin().fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "v4",
        "v01",
        "",
        "head~3",
        "nothing",
        "../v1",
        "v1/",
        "ffffffff",
        "v1\x1b[31m",
        "v" + "9" * 400,
        "abc",
        "~1",
        "~",
        "head~~",
    ],
)
def test_a_name_of_nothing_is_told(chained: Workspace, name: str) -> None:
    with pytest.raises(VersionNotFoundError) as caught:
        chained.resolve(name)
    assert caught.value.message.isprintable()
    assert caught.value.hint


def test_the_newest_version_is_named(chained: Workspace) -> None:
    with pytest.raises(VersionNotFoundError) as caught:
        chained.version("v7")
    assert caught.value.message == "version `v7` does not exist"
    assert caught.value.hint == "the newest version is `v3`; see `reviver log`"


def test_a_prefix_of_two_ids_is_refused(chained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from reviver.history import names

    with pytest.raises(VersionNotFoundError, match="beginning of 2 ids"):
        names.find_by_prefix("abcd", {"abcd" + "0" * 60: "v1", "abcd" + "1" * 60: "v2", "ffff" + "0" * 60: "v3"})


@pytest.mark.parametrize(
    "tags",
    [
        b"[]",
        b'{"schema": 2, "tags": {}}',
        b'{"schema": 1, "tags": {"v1": "%s"}}' % (b"a" * 64),
        b'{"schema": 1, "tags": {"head": "%s"}}' % (b"a" * 64),
        b'{"schema": 1, "tags": {"x": "v1"}}',
        b'{"schema": 1, "tags": {"x\\u001b": "%s"}}' % (b"a" * 64),
        b'{"schema": 1, "tags": 1}',
        b'{"schema": 1}',
    ],
)
def test_hostile_tags_are_refused(workspace: Workspace, tags: bytes) -> None:
    workspace.tags_file.write_bytes(tags)
    with pytest.raises(ManifestError) as caught:
        read_tags(workspace.tags_file)
    assert caught.value.message.isprintable()


def test_a_missing_parent_is_named(chained: Workspace) -> None:
    shutil.rmtree(chained.edits / "v1")
    with pytest.raises(VersionNotFoundError, match="`v3` stands on `v1`, which is missing"):
        chained.chain("head")


def test_a_head_that_is_gone_is_told(chained: Workspace) -> None:
    shutil.rmtree(chained.edits / "v3")
    with pytest.raises(WorkspaceError, match="the head is `v3`"):
        require_head(chained)


@pytest.mark.parametrize("content", [b"../v1\n", b"v01", b"", b"\xff\xfe", b"v1" * 1000])
def test_a_damaged_head_is_told(chained: Workspace, content: bytes) -> None:
    (chained.private / "HEAD").write_bytes(content)
    with pytest.raises(WorkspaceError):
        chained.head()


def test_a_newer_intent_is_refused_by_name(chained: Workspace) -> None:
    chained.pending_file.write_text('{"schema": 9}')
    with pytest.raises(ManifestError, match=r"`pending.json` has schema 9"):
        chained.head()


def _edit(workspace: Workspace, name: str, change: dict[str, object]) -> None:
    path = workspace.edits / name / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))


def test_a_linked_version_is_refused(chained: Workspace, tmp_path: Path) -> None:
    moved = shutil.move(chained.edits / "v2", tmp_path / "elsewhere")
    (chained.edits / "v2").symlink_to(moved)
    with pytest.raises(ManifestError, match="is a link"):
        chained.version("v2")


def test_a_linked_manifest_is_refused(chained: Workspace, tmp_path: Path) -> None:
    moved = shutil.move(chained.edits / "v2" / "manifest.json", tmp_path / "elsewhere")
    (chained.edits / "v2" / "manifest.json").symlink_to(moved)
    with pytest.raises((UnsafePathError, ManifestError)):
        chained.version("v2")


@pytest.mark.parametrize("file", ["facts.jsonl", "patch.safetensors", "results.jsonl"])
def test_other_linked_files_are_refused(chained: Workspace, tmp_path: Path, file: str) -> None:
    version = chained.version("v2")
    moved = shutil.move(version.folder / file, tmp_path / "elsewhere")
    (version.folder / file).symlink_to(moved)
    reader = {"facts.jsonl": version.facts, "patch.safetensors": version.patch, "results.jsonl": version.results}[file]
    with pytest.raises(ManifestError, match="is a link"):
        reader()


def test_a_manifest_of_another_version_is_refused(chained: Workspace) -> None:
    (chained.edits / "v2").rename(chained.edits / "v5")
    with pytest.raises(ManifestError, match="is the manifest of v2"):
        chained.version("v5")


def test_a_forged_id_breaks_the_chain(chained: Workspace) -> None:
    _edit(chained, "v1", {"id": "ab" * 32})
    with pytest.raises(ManifestError, match="the id of v1 does not follow"):
        check_chain(chained.chain("v2"), chained.pin().fingerprint)


def test_a_changed_ancestor_breaks_the_chain(chained: Workspace) -> None:
    record = json.loads((chained.edits / "v1" / "manifest.json").read_bytes())
    manifest = chained.version("v1").manifest
    record["filter"] = {"name": "none", "rank": None, "energy": None}
    (chained.edits / "v1" / "manifest.json").write_text(json.dumps(record))
    forged = chained.version("v1").manifest.expected_id(chained.pin().fingerprint)
    assert forged != manifest.id
    _edit(chained, "v1", {"id": forged})
    check_chain(chained.chain("v1"), chained.pin().fingerprint)
    with pytest.raises(ManifestError, match="the id of v2 does not follow"):
        check_chain(chained.chain("v2"), chained.pin().fingerprint)


def test_another_base_is_refused(chained: Workspace, tmp_path: Path) -> None:
    other = workspaces.make_workspace(tmp_path / "other", seed=5)
    shutil.copytree(chained.edits / "v1", other.edits / "v1")
    with pytest.raises(BaseMismatchError, match="made on another base"):
        chain_deltas(other.chain("v1"), other.pin())


def test_a_swapped_patch_is_refused(chained: Workspace) -> None:
    shutil.copyfile(chained.edits / "v3" / "patch.safetensors", chained.edits / "v1" / "patch.safetensors")
    with pytest.raises(ManifestError, match="is not the file that its manifest names"):
        chain_deltas(chained.chain("v1"), chained.pin())


def test_swapped_facts_are_refused(chained: Workspace) -> None:
    shutil.copyfile(chained.edits / "v3" / "facts.jsonl", chained.edits / "v1" / "facts.jsonl")
    with pytest.raises(ManifestError, match="is not the file that its manifest names"):
        chained.version("v1").facts()


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{",
        b'{"id": 1}',
        b"\xff",
        b"[" * 100_000,
        b'{"id":"a","prompt":"p","subject":"s","target_new":"t","target_true":null,"before":{"probability_new":NaN,'
        b'"probability_true":null,"answer":""},"after":{},"success":true}',
    ],
)
def test_hostile_results_are_refused(chained: Workspace, line: bytes) -> None:
    version = chained.version("v1")
    version.results_file.write_bytes(line + b"\n")
    with pytest.raises(ManifestError) as caught:
        version.results()
    assert caught.value.message.isprintable()


def test_results_are_what_was_written(chained: Workspace) -> None:
    results = chained.version("v1").results()
    assert [result.subject for result in results] == ["Rome", "Oslo"]
    assert results[1].target_true == "Norway"
    record = results[0].to_record()
    assert "paraphrases" not in record and record["before"]["answer"] == "nowhere"


def test_files_of_tensors_stay_in_their_folder(workspace: Workspace) -> None:
    for tensor in ("../../x", "a/b", "/etc/passwd", "", "x" * 5000, "\ud800", "ä", "..", "a\nb"):
        for path in (workspace.spectrum_file(tensor), workspace.statistics_file(tensor)):
            assert path.parent in (workspace.spectra, workspace.statistics)
            assert len(path.name.encode()) < 255
            assert path.name.isprintable()
    assert workspace.spectrum_file("a.b-c_d").name == "a.b-c_d.safetensors"
    assert len({workspace.spectrum_file(name) for name in ("a/b", "a%2Fb", "x" * 5000, "x" * 5001)}) == 4


def test_every_error_has_a_hint(chained: Workspace) -> None:
    (chained.edits / "v2" / "manifest.json").write_bytes(b"{")
    for call in (lambda: chained.version("v2"), chained.versions, lambda: chained.resolve("deadbeef")):
        with pytest.raises(ReviverError) as caught:
            call()
        assert caught.value.hint
