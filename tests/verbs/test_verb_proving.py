"""checkout, verify and undo: bytes against bytes, and each kind of damage by its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import workspaces
from crashes import killed_at

from reviver.checkpoint.folder import CheckpointFolder
from reviver.errors import BaseMismatchError, CheckFailedError, ManifestError, UsageError, WorkspaceError
from reviver.history.chain import chain_deltas
from reviver.history.workspace import Workspace
from reviver.verbs.checkout import checkout
from reviver.verbs.status import status
from reviver.verbs.undo import undo
from reviver.verbs.verify import verify

Check = Callable[..., dict[str, Any]]


def problems(workspace: Workspace, version: str | None = None) -> list[tuple[str, str | None, str | None, str]]:
    report = verify(workspace.root, version)
    assert report.ok is not bool(report.findings)
    return [(one.version, one.path, one.tensor, one.problem) for one in report.findings]


# checkout


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v3"])
def test_a_checkpoint_is_the_exact_sum_and_the_bases_bytes(chained: Workspace, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    report = checkout(chained.root, name, output=output, link_mode="copy")
    assert (report.version, report.already, report.files) == (name, False, 7)
    base = CheckpointFolder.open(Path(chained.pin().folder))
    made = CheckpointFolder.open(output)
    deltas = chain_deltas(chained.chain(name), chained.pin())
    for tensor in base.tensors:
        expected = workspaces.exact_bytes(base.read_tensor(tensor), deltas.get(tensor, []))
        assert made.read_tensor(tensor) == expected
    before, after = workspaces.snapshot(base.root), workspaces.snapshot(output)
    assert before.keys() == after.keys()
    assert {path for path in before if before[path] != after[path]} <= set(workspaces.SHARDS)
    assert chained.head() == "v3"
    if name != "v0":
        assert workspaces.snapshot(chained.checkpoint(name)) == after


def test_checkout_into_the_workspace(chained: Workspace, check: Check) -> None:
    kept = workspaces.snapshot(chained.checkpoint("v2"))
    path = chained.checkpoint("v2")

    def remove() -> None:
        shutil.rmtree(path)

    fields = check(chained, "checkout", "v2", human=[f"wrote v2 to {path}: 7 files"], quiet=str(path), before=remove)
    assert (fields["already"], fields["version"]) == (False, "v2")
    assert workspaces.snapshot(path) == kept
    assert chained.head() == "v3"
    fields = check(chained, "checkout", "v2", human=["is v2 already, every byte of it"], quiet=str(path))
    assert fields["already"] is True


def test_checkout_of_the_base(chained: Workspace) -> None:
    report = checkout(chained.root, "base", link_mode="hardlink")
    assert report.path == chained.checkpoint("v0")
    assert workspaces.snapshot(report.path) == workspaces.snapshot(Path(chained.pin().folder))
    assert verify(chained.root).ok
    (report.path / "config.json").write_bytes(b"{}")
    assert problems(chained) == [("v0", "checkpoints/v0/config.json", None, "it has 2 bytes instead of 52")]


def test_only_changed_shards_are_new_files(chained: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert checkout(chained.root, "v1", output=output, link_mode="hardlink").link_mode == "hardlink"
    base = Path(chained.pin().folder)
    same = {shard for shard in workspaces.SHARDS if (output / shard).stat().st_ino == (base / shard).stat().st_ino}
    assert same == {"model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"}


def test_an_empty_folder_is_used_and_a_full_one_refused(chained: Workspace, tmp_path: Path, check: Check) -> None:
    output = tmp_path / "out"
    output.mkdir()
    assert not checkout(chained.root, "v1", output=output).already
    assert checkout(chained.root, "v1", output=output).already
    with pytest.raises(WorkspaceError, match="holds something else than v2"):
        checkout(chained.root, "v2", output=output)
    (output / "extra").write_bytes(b"")
    with pytest.raises(WorkspaceError, match="`extra` differs"):
        checkout(chained.root, "v1", output=output)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(WorkspaceError, match="is in the way"):
        checkout(chained.root, "v1", output=file)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(WorkspaceError, match="is in the way"):
        checkout(chained.root, "v1", output=tmp_path / "dangling")
    assert file.read_bytes() == b"x"
    assert not list(tmp_path.glob(".*.partial"))


def test_a_damaged_checkpoint_is_not_written_over(chained: Workspace) -> None:
    (chained.checkpoint("v1") / "config.json").write_bytes(b"precious")
    with pytest.raises(WorkspaceError, match=r"`config.json` differs"):
        checkout(chained.root, "v1")
    assert (chained.checkpoint("v1") / "config.json").read_bytes() == b"precious"


def test_places_that_are_never_written(chained: Workspace) -> None:
    base = Path(chained.pin().folder)
    before = workspaces.snapshot(base)
    for output in (base, base / "x", chained.edits / "v9", chained.private / "x", chained.root, chained.root.parent):
        with pytest.raises(UsageError):
            checkout(chained.root, "v1", output=output)
    assert workspaces.snapshot(base) == before


def test_a_changed_base_or_a_forged_history_writes_nothing(chained: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "out"
    base = Path(chained.pin().folder)
    kept = (base / "tokenizer.json").read_bytes()
    (base / "tokenizer.json").write_bytes(kept.replace(b"1", b"2"))
    with pytest.raises(BaseMismatchError):
        checkout(chained.root, "v1", output=output)
    (base / "tokenizer.json").write_bytes(kept)
    path = chained.edits / "v1" / "manifest.json"
    record = json.loads(path.read_bytes())
    for file in record["files"]:
        if file["changed"]:
            file["sha256"] = "ab" * 32
    path.write_text(json.dumps(record))
    with pytest.raises(CheckFailedError, match=r"`model-00002-of-00003.safetensors` of v1"):
        checkout(chained.root, "v1", output=output)
    shutil.copyfile(chained.edits / "v2" / "patch.safetensors", chained.edits / "v1" / "patch.safetensors")
    with pytest.raises(ManifestError):
        checkout(chained.root, "v1", output=output)
    assert not output.exists()
    assert not list(tmp_path.glob(".out*"))


def test_what_a_killed_checkout_left_is_removed_by_the_next(chained: Workspace, tmp_path: Path) -> None:
    left = tmp_path / ".out.0123456789ab.partial"
    left.mkdir()
    (left / "config.json").write_bytes(b"half")
    checkout(chained.root, "v1", output=tmp_path / "out")
    assert not left.exists()


def test_a_checkout_killed_at_every_instant_leaves_all_or_nothing(chained: Workspace, tmp_path: Path) -> None:
    expected = workspaces.snapshot(chained.checkpoint("v2"))
    call = 1
    while True:
        folder = tmp_path / f"crash-{call}"
        folder.mkdir()
        output = folder / "out"

        def write() -> None:
            checkout(chained.root, "v2", output=output, link_mode="hardlink")  # noqa: B023 - called at once.

        ended = not killed_at(call, write)
        assert not output.exists() or workspaces.snapshot(output) == expected
        write()
        assert workspaces.snapshot(output) == expected
        assert [path.name for path in folder.iterdir()] == ["out"]
        if ended:
            break
        call += 3
    assert call > 60


# verify


def test_verify_of_a_sound_history(chained: Workspace, check: Check) -> None:
    shutil.rmtree(chained.checkpoint("v2"))
    fields = check(
        chained, "verify", human=["base: 7 files read, 0 findings", "not written", "everything holds"], quiet="ok"
    )
    assert fields["ok"] is True
    assert [(one["version"], one["checkpoint"], one["rebuilt"], one["tensors"]) for one in fields["versions"]] == [
        ("v1", True, True, 1),
        ("v2", False, True, 2),
        ("v3", True, True, 1),
    ]
    fields = check(chained, "verify", "head~1", human=["everything holds"], quiet="ok")
    assert [one["version"] for one in fields["versions"]] == ["v1"]


def test_verify_of_damage_exits_3_and_still_prints_the_report(chained: Workspace, check: Check) -> None:
    path = chained.checkpoint("v3") / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    fields = check(
        chained,
        "verify",
        human=["v3 checkpoints/v3/tokenizer.json: its bytes were changed"],
        stderr=[
            "error: v3 checkpoints/v3/tokenizer.json: its bytes were changed\n",
            "hint: move `checkpoints/v3` away and write it again with `reviver checkout v3`\n",
        ],
        quiet="failed",
        code=3,
    )
    assert fields["ok"] is False
    assert fields["findings"][0]["path"] == "checkpoints/v3/tokenizer.json"


def test_one_changed_byte_of_a_tensor_is_named(chained: Workspace) -> None:
    folder = CheckpointFolder.open(chained.checkpoint("v2"))
    for name, shard in ((workspaces.SECOND, "model-00003-of-00003"), (workspaces.UNTOUCHED, "model-00001-of-00003")):
        entry = folder.tensors[name]
        path = chained.checkpoint("v2") / entry.shard
        data = bytearray(path.read_bytes())
        data[entry.start + 3] ^= 1
        # The shard may be a link to the base, so it is replaced, not written to.
        path.unlink()
        path.write_bytes(data)
        at = f"checkpoints/v2/{shard}.safetensors"
        assert ("v2", at, None, "its bytes were changed") in problems(chained)
        assert ("v2", at, name, "its bytes are not the version's") in problems(chained, "v2")
    assert problems(chained, "v1") == []


def test_missing_and_extra_files_are_named(chained: Workspace) -> None:
    folder = chained.checkpoint("v1")
    (folder / "config.json").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "extra").write_bytes(b"")
    (folder / "link").symlink_to("/etc")
    assert problems(chained) == [
        ("v1", "checkpoints/v1/config.json", None, "it is missing"),
        ("v1", "checkpoints/v1/link", None, "it does not belong to the version"),
        ("v1", "checkpoints/v1/sub/extra", None, "it does not belong to the version"),
    ]


def test_a_touched_base_is_named(chained: Workspace) -> None:
    base = Path(chained.pin().folder)
    data = bytearray((base / "model-00001-of-00003.safetensors").read_bytes())
    data[-1] ^= 1
    (base / "model-00001-of-00003.safetensors").unlink()
    (base / "model-00001-of-00003.safetensors").write_bytes(data)
    assert problems(chained) == [("v0", "model-00001-of-00003.safetensors", None, "its bytes were changed")]
    shutil.rmtree(base)
    (finding,) = [one for one in problems(chained) if one[0] == "v0"]
    assert finding[3] == f"the base's folder `{base}` is missing"


def test_a_file_whose_time_changed_is_fine(chained: Workspace) -> None:
    os.utime(Path(chained.pin().folder) / "config.json", ns=(1, 1))
    os.utime(chained.checkpoint("v1") / "config.json", ns=(1, 1))
    assert problems(chained) == []
    assert not status(chained.root).clean


def _forge(workspace: Workspace, name: str, **changes: object) -> None:
    path = workspace.edits / name / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_forged_history_is_named(chained: Workspace) -> None:
    edits = chained.edits
    kept = workspaces.snapshot(edits)

    def restore() -> None:
        shutil.rmtree(edits)
        for path, data in kept.items():
            (edits / path).parent.mkdir(parents=True, exist_ok=True)
            (edits / path).write_bytes(data)

    _forge(chained, "v1", id="ab" * 32)
    found = problems(chained)
    assert ("v1", "edits/v1/manifest.json", None, "its id does not follow from its content and its parent") in found
    assert ("v2", "edits/v2/manifest.json", None, "its id does not follow from its content and its parent") in found
    restore()
    (edits / "v2" / "facts.jsonl").write_bytes(kept["v3/facts.jsonl"])
    assert problems(chained) == [
        ("v2", "edits/v2/facts.jsonl", None, "its bytes are not the ones that the manifest hashes")
    ]
    restore()
    (edits / "v2" / "patch.safetensors").write_bytes(kept["v3/patch.safetensors"])
    assert [one[:2] for one in problems(chained)] == [("v2", "edits/v2/patch.safetensors")]
    restore()
    (edits / "v2" / "results.jsonl").write_bytes(b"{")
    assert [one[:2] for one in problems(chained)] == [("v2", "edits/v2/results.jsonl")]
    restore()
    (edits / "v2" / "manifest.json").write_bytes(b"{")
    assert [one[:2] for one in problems(chained)] == [("v2", "edits/v2/manifest.json")]
    restore()
    shutil.rmtree(edits / "v1")
    found = problems(chained)
    assert {one[:2] for one in found} == {
        ("v0", "checkpoints/v1"),
        ("v2", "edits/v2/manifest.json"),
        ("v3", "edits/v3/manifest.json"),
    }
    restore()
    assert problems(chained) == []


def test_a_forged_result_is_found_by_rebuilding(chained: Workspace) -> None:
    record = json.loads((chained.edits / "v2" / "manifest.json").read_bytes())
    record["tensors"][0]["result_sha256"] = "ab" * 32
    _forge(chained, "v2", tensors=record["tensors"])
    text = "rebuilt from base and patches it has another hash than the manifest"
    assert problems(chained) == [("v2", None, workspaces.FIRST, text)]
    record["tensors"][0]["base_sha256"] = "cd" * 32
    _forge(chained, "v2", tensors=record["tensors"])
    assert "has another hash for the base's" in problems(chained)[0][3]


def test_a_forged_file_hash_with_a_matching_file_is_found_by_rebuilding(chained: Workspace) -> None:
    from reviver.files import sha256_bytes

    record = json.loads((chained.edits / "v2" / "manifest.json").read_bytes())
    path = chained.checkpoint("v2") / "config.json"
    path.write_bytes(path.read_bytes().replace(b"tiny", b"evil"))
    for file in record["files"]:
        if file["path"] == "config.json":
            file["sha256"] = sha256_bytes(path.read_bytes())
    _forge(chained, "v2", files=record["files"])
    assert [one[1] for one in problems(chained)] == ["checkpoints/v2/config.json"]


def test_head_log_and_tags_are_checked(chained: Workspace) -> None:
    (chained.private / "HEAD").write_bytes(b"v8\n")
    (chained.private / "operations.jsonl").write_bytes(b"{\n")
    chained.tags_file.write_bytes(b"[]")
    assert [one[1] for one in problems(chained)] == [
        ".reviver/HEAD",
        ".reviver/operations.jsonl",
        "edits/tags.json",
    ]


# undo


def test_undo_goes_back_step_by_step_and_loses_nothing(chained: Workspace, check: Check) -> None:
    kept = workspaces.snapshot(chained.edits) | workspaces.snapshot(chained.checkpoints)
    assert [undo(chained.root).head_after for _ in range(3)] == ["v2", "v1", "v0"]
    assert chained.head() == "v0"
    with pytest.raises(WorkspaceError, match="there is nothing to undo") as caught:
        undo(chained.root)
    assert caught.value.hint
    assert workspaces.snapshot(chained.edits) | workspaces.snapshot(chained.checkpoints) == kept
    operations = chained.operations()
    assert [(one.verb, one.head_before, one.head_after) for one in operations[-3:]] == [
        ("undo", "v3", "v2"),
        ("undo", "v2", "v1"),
        ("undo", "v1", "v0"),
    ]
    assert [one.detail["undoes"] for one in operations[-3:]] == [4, 3, 2]
    assert verify(chained.root).ok


def test_undo_after_new_work_undoes_that_first(chained: Workspace) -> None:
    undo(chained.root)
    version = workspaces.add_version(chained, [], {workspaces.FIRST: workspaces.low_rank(7)})
    assert (version.name, version.parent) == ("v4", "v2")
    assert [undo(chained.root).head_after for _ in range(3)] == ["v2", "v1", "v0"]


def test_undo_in_every_mode(chained: Workspace, check: Check) -> None:
    fields = check(
        chained,
        "undo",
        human=["undid `apply` of 20", "the head is v2, it was v3", "v3 is still there"],
        quiet="v2",
        before=lambda: None if chained.head() == "v3" else _restart(chained),
    )
    assert (fields["head_before"], fields["head_after"]) == ("v3", "v2")


def _restart(workspace: Workspace) -> None:
    """Put the head back as if nothing had been undone."""
    path = workspace.private / "operations.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"verb":"undo"' not in line))
    (workspace.private / "HEAD").write_bytes(b"v3\n")


def test_undo_without_a_log_goes_to_the_parent(chained: Workspace) -> None:
    (chained.private / "operations.jsonl").unlink()
    assert undo(chained.root).head_after == "v1"
    assert undo(chained.root).head_after == "v0"


def test_undo_hints_at_a_checkpoint_that_is_not_written(chained: Workspace, call: Callable[..., Any]) -> None:
    shutil.rmtree(chained.checkpoint("v2"))
    outcome = call("undo", "-C", str(chained.root))
    assert outcome.stderr == f"hint: write its checkpoint with `reviver checkout v2 -C {chained.root}`\n"


def test_undo_while_another_writes_is_refused(chained: Workspace, call: Callable[..., Any]) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from reviver.history.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).lock('apply'): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(chained.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for verb in ("undo", "checkout"):
            outcome = call(verb, "-C", str(chained.root))
            assert outcome.code == 1
            assert outcome.stderr.startswith(
                f"error: the workspace is in use by `reviver apply` (process {process.pid} on "
            )
        (chained.edits / ".v4.partial").mkdir()
        for verb in ("status", "log", "show", "verify"):
            assert call(verb, "-C", str(chained.root)).code == 0
        report = status(chained.root)
        assert report.writer is not None and report.writer.pid == process.pid
        assert report.clean, "what a living process makes is no leftover"
    assert status(chained.root).leftovers == ("edits/.v4.partial",)
    assert chained.head() == "v3"
