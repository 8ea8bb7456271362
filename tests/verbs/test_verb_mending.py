"""What is damaged is told where one looks first, with what truly mends it; and names that mean one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import workspaces

from reviver.history.workspace import Workspace
from reviver.verbs.checkout import checkout
from reviver.verbs.status import status
from reviver.verbs.tag import list_tags, tag

Check = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("HEAD", "write the name of a version from `reviver log` into it"),
        ("operations.jsonl", "move it away: only `undo` needs it, the history itself is in `edits/`"),
    ],
)
def test_verify_says_how_to_mend_what_is_this_machines_alone(
    chained: Workspace, call: Callable[..., Any], file: str, hint: str
) -> None:
    (chained.private / file).write_bytes(b"garbage\n")
    done = call("verify", "--level", "history", "-C", str(chained.root))
    assert done.code == 3
    assert hint.partition("`")[0] in done.stderr.splitlines()[-1]
    assert "reviver init" not in done.stderr


def test_status_names_a_damaged_file_of_tags(chained: Workspace) -> None:
    chained.tags_file.write_bytes(b'{"a\x01": 1}')
    report = status(chained.root)
    assert report.problems == ("`tags.json` is not JSON: Invalid control character at line 1 column 4",)
    assert not report.clean


def test_facts_that_cannot_be_read_are_not_promised(chained: Workspace, call: Callable[..., Any]) -> None:
    (chained.edits / "v1" / "facts.jsonl").write_bytes(b"")
    done = call("show", "v1", "-C", str(chained.root))
    assert done.code == 0
    assert "--facts" not in done.stdout
    assert "is not the file that its manifest names" in done.stderr


def test_an_empty_folder_behind_a_link_is_written_to(chained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    report = checkout(chained.root, "v1", output=tmp_path / "link")
    assert not report.already
    assert (tmp_path / "link").is_symlink()
    assert workspaces.snapshot(tmp_path / "disk") == workspaces.snapshot(chained.checkpoint("v1"))
    assert checkout(chained.root, "v1", output=tmp_path / "link").already


def test_a_tag_of_a_version_that_was_made_twice_names_what_the_list_names(workspace: Workspace) -> None:
    facts, patch = [workspaces.make_fact("Rome", "Peru")], {workspaces.FIRST: workspaces.low_rank(1)}
    for _ in range(2):
        workspaces.add_version(workspace, facts, patch, parent="base", checkpoint=False)
    assert workspace.version("v1").id == workspace.version("v2").id
    report = tag(workspace.root, "good", "v1")
    assert report.tag in list_tags(workspace.root).tags
