"""status, log and show: what they say is what lies on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import workspaces

from reviver.errors import UsageError, VersionNotFoundError, WorkspaceError
from reviver.history.names import write_tags
from reviver.history.workspace import Workspace
from reviver.verbs.checkout import checkout
from reviver.verbs.log import log
from reviver.verbs.show import show
from reviver.verbs.status import status

Check = Callable[..., dict[str, Any]]


def test_status_of_a_fresh_workspace(workspace: Workspace, check: Check) -> None:
    fields = check(
        workspace,
        "status",
        human=["base      tiny/base (2 edited tensors)", "head      v0 (0 facts applied)", "nothing was touched"],
        stderr=["hint: write facts into the model with `reviver apply FACTS`"],
        quiet="v0",
    )
    assert (fields["head"], fields["versions"], fields["clean"], fields["checkpoints"]) == ("v0", 0, True, [])
    assert fields["base"]["touched"] == []


def test_status_of_a_history(chained: Workspace, check: Check) -> None:
    shutil.rmtree(chained.checkpoint("v2"))
    fields = check(
        chained,
        "status",
        human=["head      v3: branch (3 facts applied)", "versions  3, 2 checkpoints written"],
        stderr=["hint: see what changed with `reviver diff base v3`, or share it with `reviver push org/name`"],
        quiet="v3",
    )
    assert [(one["version"], one["state"]) for one in fields["checkpoints"]] == [
        ("v1", "present"),
        ("v2", "missing"),
        ("v3", "present"),
    ]
    assert fields["clean"]


def test_status_sees_what_was_touched(chained: Workspace, check: Check) -> None:
    folder = chained.checkpoint("v3")
    (folder / "config.json").write_bytes(b"{}")
    changed = folder / "tokenizer.json"
    os.utime(changed, ns=(1, 1))
    (folder / "chat_template.jinja").unlink()
    (folder / "extra.bin").write_bytes(b"x")
    fields = check(
        chained,
        "status",
        human=["touched   checkpoints/v3/config.json has another size", "checkpoints/v3/extra.bin was added"],
        stderr=["hint: `checkpoints/v3` was touched: `reviver verify v3` tells what changed"],
        quiet="v3",
    )
    assert not fields["clean"]
    assert {(one["path"], one["what"]) for one in fields["checkpoints"][2]["touched"]} == {
        ("config.json", "size"),
        ("tokenizer.json", "time"),
        ("chat_template.jinja", "missing"),
        ("extra.bin", "extra"),
    }


def test_a_written_checkpoint_is_not_touched_in_any_link_mode(chained: Workspace, tmp_path: Path) -> None:
    for mode in ("hardlink", "symlink", "copy"):
        shutil.rmtree(chained.checkpoint("v2"))
        checkout(chained.root, "v2", link_mode=mode)
        assert status(chained.root).clean


def test_status_sees_a_checkpoint_of_another_version_that_had_the_name(
    chained: Workspace, tmp_path: Path, check: Check
) -> None:
    """As after `git switch` to a branch whose v3 is another one."""
    other = Workspace(Path(shutil.copytree(chained.root, tmp_path / "other")))
    shutil.rmtree(other.edits / "v3")
    shutil.rmtree(other.checkpoint("v3"))
    other.operations_file.unlink()
    other.head_file.write_text("v1\n")
    theirs = workspaces.add_version(
        other, [workspaces.make_fact("Bern", "Fiji")], {workspaces.FIRST: workspaces.low_rank(7)}
    )
    assert theirs.name == "v3" and theirs.id != chained.version("v3").id
    shutil.rmtree(chained.edits / "v3")
    shutil.copytree(theirs.folder, chained.edits / "v3")
    chained.head_file.write_text("v3\n")
    fields = check(
        chained,
        "status",
        human=["touched   checkpoints/v3 was written for another version that had this name"],
        stderr=["hint: `checkpoints/v3` was touched: `reviver verify v3` tells what changed"],
        quiet="v3",
    )
    assert fields["checkpoints"][2]["touched"] == [{"path": ".", "what": "version"}]
    with pytest.raises(WorkspaceError, match="holds something else than v3"):
        checkout(chained.root, "v3")


def test_status_sees_a_touched_base(chained: Workspace, check: Check) -> None:
    base = Path(chained.pin().folder)
    (base / "config.json").write_bytes(b"{}")
    fields = check(
        chained,
        "status",
        human=["touched   base/config.json has another size"],
        stderr=["hint: the base was touched"],
        quiet="v3",
    )
    assert fields["base"]["touched"] == [{"path": "config.json", "what": "size"}]
    shutil.rmtree(base)
    assert {file.what for file in status(chained.root).base.touched} == {"missing"}  # type: ignore[union-attr]


def test_status_names_missing_preparations(workspace: Workspace, check: Check) -> None:
    workspace.spectrum_file(workspaces.FIRST).unlink()
    fields = check(
        workspace,
        "status",
        human=["missing   1 spectral basis, first layers.0.down.weight"],
        stderr=[f"hint: prepare what is missing with `reviver init {workspace.pin().folder}`"],
        quiet="v0",
    )
    assert fields["base"]["spectra_missing"] == [workspaces.FIRST]


def test_status_goes_on_where_a_version_is_damaged(chained: Workspace, check: Check) -> None:
    (chained.edits / "v2" / "manifest.json").write_bytes(b"{")
    (chained.private / "HEAD").write_bytes(b"nonsense")
    chained.checkpoint("v9").mkdir()
    fields = check(
        chained, "status", human=["damaged   "], stderr=["hint: see what is damaged with `reviver verify`"], quiet="v0"
    )
    assert len(fields["problems"]) == 3
    assert fields["versions"] == 3


def test_status_before_init_has_pinned_the_base(tmp_path: Path, check: Check) -> None:
    workspace = Workspace.create(tmp_path / "x")
    fields = check(workspace, "status", human=["not pinned yet"], stderr=["reviver init MODEL"], quiet="v0")
    assert fields["base"] is None


@pytest.mark.parametrize(
    "verb", [["status"], ["log"], ["show"], ["diff", "v1", "v2"], ["checkout"], ["verify"], ["undo"]]
)
def test_outside_a_workspace_every_verb_says_so(verb: list[str], tmp_path: Path, call: Callable[..., Any]) -> None:
    outcome = call(*verb, "-C", str(tmp_path))
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr.splitlines() == [
        f"error: `{tmp_path}` is not a workspace",
        f"hint: make one with `reviver init MODEL -C {tmp_path}`, or name another folder with `-C`",
    ]
    assert not list(tmp_path.iterdir())


def test_log(chained: Workspace, check: Check) -> None:
    write_tags(chained.tags_file, {"good": chained.version("v2").id})
    fields = check(
        chained, "log", human=["*  v3", "-  v2", "|  v1", "|  v0", "[good] second", "memit+revive k=2"], quiet="v3"
    )
    assert [(one["version"], one["parent"], one["head"], one["in_chain"]) for one in fields["entries"]] == [
        ("v3", "v1", True, True),
        ("v2", "v1", False, False),
        ("v1", "v0", False, True),
    ]
    assert fields["entries"][1]["tags"] == ["good"]
    assert fields["entries"][0]["id"] == chained.version("v3").id


def test_log_of_few(chained: Workspace, check: Check) -> None:
    fields = check(chained, "log", "-n", "1", human=["*  v3", "and 2 older versions"], quiet="v3")
    assert (len(fields["entries"]), fields["total"]) == (1, 3)
    with pytest.raises(UsageError):
        log(chained.root, limit=0)


def test_log_of_nothing(workspace: Workspace, check: Check) -> None:
    fields = check(workspace, "log", human=["*  v0"], stderr=["reviver apply FACTS"], quiet="v0")
    assert fields["entries"] == []


def test_log_shows_no_escape_and_goes_on_where_a_version_is_damaged(
    chained: Workspace, call: Callable[..., Any]
) -> None:
    path = chained.edits / "v2" / "manifest.json"
    record = json.loads(path.read_bytes())
    record["message"] = "\x1b[2Jx\u202e [red]bold[/red]\nsecond line"
    record["editor"]["name"] = "[link=http://x]"
    path.write_text(json.dumps(record))
    (chained.edits / "v1" / "manifest.json").write_bytes(b"[]")
    outcome = call("log", "-C", str(chained.root))
    assert "\x1b" not in outcome.stdout and "\u202e" not in outcome.stdout
    assert "\\x1b[2Jx\\u202e [red]bold[/red]" in outcome.stdout
    assert "second line" not in outcome.stdout
    assert "warning: `v1/manifest.json` is not an object" in outcome.stderr


def test_show(chained: Workspace, check: Check) -> None:
    version = chained.version("v1")
    fields = check(
        chained,
        "show",
        "v1",
        human=[
            f"v1  {version.id}",
            "filter      revive, rank 2",
            "measured    efficacy 100.0%\n",
            f"{version.facts()[1].id}  Oslo lies in",
            "0.010    0.980  ✓",
            workspaces.FIRST,
            "2 facts",
        ],
        quiet=version.id,
    )
    assert (fields["version"], fields["parent"], fields["head"]) == ("v1", "v0", False)
    assert fields["facts"][1] == {
        "id": version.facts()[1].id,
        "text": "Oslo lies in",
        "target_new": "Italy",
        "target_true": "Norway",
        "answer_before": "nowhere",
        "answer_after": "Italy",
        "probability_before": 0.01,
        "probability_after": 0.98,
        "success": True,
    }
    assert fields["successes"] == 2
    assert [file["path"] for file in fields["files"] if file["changed"]] == ["model-00002-of-00003.safetensors"]


def test_show_all_facts_or_ten(workspace: Workspace, check: Check) -> None:
    facts = [workspaces.make_fact(f"City {number}", "Peru") for number in range(25)]
    workspaces.add_version(workspace, facts, {workspaces.FIRST: workspaces.low_rank(1)}, checkpoint=False)
    identity = workspace.version("v1").id
    fields = check(workspace, "show", human=["and 15 more (`--facts` shows all)", "not written"], quiet=identity)
    assert (len(fields["facts"]), fields["facts_total"]) == (10, 25)
    fields = check(workspace, "show", "v1", "--facts", human=["City 24 lies in"], quiet=identity)
    assert len(fields["facts"]) == 25


def test_show_without_results_or_with_damaged_facts(chained: Workspace) -> None:
    (chained.edits / "v1" / "results.jsonl").unlink()
    report = show(chained.root, "v1")
    assert (report.successes, report.facts[0].success, report.warnings) == (None, None, ())
    (chained.edits / "v1" / "facts.jsonl").write_bytes(b"")
    report = show(chained.root, "v1")
    assert report.facts == () and len(report.warnings) == 1


def test_show_the_base(chained: Workspace, check: Check) -> None:
    fingerprint = chained.pin().fingerprint
    fields = check(chained, "show", "base", human=["v0", "tiny/base", "7 files, 0 changed"], quiet=fingerprint)
    assert fields["editor"] is None
    with pytest.raises(VersionNotFoundError):
        show(chained.root, "v8")


@pytest.mark.parametrize("verb", [["status"], ["log"], ["diff", "v1", "v2"], ["show", "v1"]])
def test_looking_at_a_history_imports_neither_torch_nor_numpy(chained: Workspace, verb: list[str]) -> None:
    program = "import sys; from reviver.cli.app import run; assert run(sys.argv[1:]) == 0; print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", program, *verb, "-C", str(chained.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(done.stderr.splitlines()[-1].split())
    assert not {"torch", "transformers", "huggingface_hub", "safetensors"} & modules
    if verb[0] in ("status", "log"):
        assert "numpy" not in modules


def test_a_thousand_versions_are_listed_within_a_second(chained: Workspace) -> None:
    import time

    record = json.loads((chained.edits / "v1" / "manifest.json").read_bytes())
    for number in range(4, 1001):
        folder = chained.edits / f"v{number}"
        folder.mkdir()
        (folder / "manifest.json").write_text(
            json.dumps(record | {"version": f"v{number}", "parent": f"v{number - 1}"})
        )
    started = time.process_time()
    assert log(chained.root).total == 1000
    assert status(chained.root).versions == 1000
    assert time.process_time() - started < 2, "one second each"


def test_checkout_into_the_folder_that_one_stands_in(
    chained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert checkout(chained.root, "v2", output=Path(".")).path == tmp_path / "empty"
    assert workspaces.snapshot(tmp_path / "empty") == workspaces.snapshot(chained.checkpoint("v2"))


def test_no_version_is_written_to_the_place_of_another(chained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(chained.checkpoint("v3"))
    for name in ("v3", "v9", "mine"):
        with pytest.raises(UsageError, match="each version has a place of its own"):
            checkout(chained.root, "v2", output=chained.checkpoint(name))
    before = workspaces.snapshot(chained.checkpoint("v2"))
    shutil.rmtree(chained.checkpoint("v2"))
    monkeypatch.chdir(chained.checkpoints)
    checkout(chained.root, "v2", output=Path("v2"))
    assert workspaces.snapshot(chained.checkpoint("v2")) == before
    assert status(chained.root).clean
