"""Two histories of one base meet: ids decide, numbers are given anew, and it happens wholly or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import workspaces
from crashes import killed_at

from reviver.errors import (
    BaseMismatchError,
    ManifestError,
    ResourceError,
    ReviverError,
    UnfinishedError,
    VersionNotFoundError,
    WorkspaceError,
)
from reviver.history.evaluations import Evaluation, evaluations_folder, write_evaluation
from reviver.history.head import read_head
from reviver.history.names import read_tags, write_tags
from reviver.history.workspace import Workspace
from reviver.verbs.import_ import import_
from reviver.verbs.undo import undo
from reviver.verbs.verify import verify


def clone(workspace: Workspace, root: Path) -> Workspace:
    """Return what `git clone` and `init` give: the history, the same base, no checkpoints."""
    shutil.copytree(workspace.edits, root / "edits")
    other = Workspace.create(root)
    other.save_pin(workspace.pin())
    with other.lock("init"):
        other.record("init", {})
    shutil.copy(workspace.head_file, other.head_file)
    return other


def add(workspace: Workspace, subject: str, seed: int, **options: object) -> str:
    facts = [workspaces.make_fact(subject, "Peru")]
    return workspaces.add_version(
        workspace,
        facts,
        {workspaces.FIRST: workspaces.low_rank(seed)},
        message=subject,
        checkpoint=False,
        **options,  # type: ignore[arg-type]
    ).id


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Workspace]:
    """Two clones of three versions: mine made v4, theirs v4, v5 on it, and v6 on v1."""
    folder = tmp_path_factory.mktemp("sides")
    mine = workspaces.make_chain(workspaces.make_workspace(folder))
    theirs = clone(mine, folder / "theirs")
    add(mine, "Mine", 10)
    for subject, parent in (("Theirs", "head"), ("Second", "head"), ("Third", "v1")):
        add(theirs, subject, 20, parent=parent)
    return mine, theirs


@pytest.fixture
def sides(made: tuple[Workspace, Workspace], tmp_path: Path) -> tuple[Workspace, Workspace]:
    """Copies of both sides; they stand on one base."""
    for side in made:
        shutil.copytree(side.root, tmp_path / side.root.name, symlinks=True)
    return Workspace(tmp_path / "work"), Workspace(tmp_path / "theirs")


def test_versions_that_are_not_here_are_renumbered_and_keep_their_ids(sides: tuple[Workspace, Workspace]) -> None:
    mine, theirs = sides
    kept = workspaces.snapshot(mine.edits)
    before = workspaces.snapshot(theirs.root)
    report = import_(mine.root, theirs.root)
    assert [(one.was, one.version, one.parent) for one in report.imported] == [
        ("v4", "v5", "v3"),
        ("v5", "v6", "v5"),
        ("v6", "v7", "v1"),
    ]
    assert (report.already, report.warnings) == (3, ())
    for one in report.imported:
        assert mine.version(one.version).id == theirs.version(one.was).id == one.id
        for name in ("facts.jsonl", "patch.safetensors", "results.jsonl"):
            assert (mine.edits / one.version / name).read_bytes() == (theirs.edits / one.was / name).read_bytes()
    after = workspaces.snapshot(mine.edits)
    assert {path: after[path] for path in kept} == kept
    assert workspaces.snapshot(theirs.root) == before
    assert mine.head() == "v4"
    assert verify(mine.root).ok
    assert add(mine, "Next", 30) == mine.version("v8").id
    last = mine.operations()[-2]
    assert (last.verb, last.head_before, last.head_after) == ("import", "v4", "v4")
    assert undo(mine.root).head_after == "v4"


def test_importing_again_or_back_takes_nothing_twice(sides: tuple[Workspace, Workspace]) -> None:
    mine, theirs = sides
    import_(mine.root, theirs.root)
    done = workspaces.snapshot(mine.root)
    report = import_(mine.root, theirs.edits)
    assert (report.imported, report.already) == ((), 6)
    assert {path: data for path, data in workspaces.snapshot(mine.root).items() if not path.endswith("lock")} == {
        path: data for path, data in done.items() if not path.endswith("lock")
    }
    back = import_(theirs.root, mine.root)
    assert [(one.was, one.version) for one in back.imported] == [("v4", "v7")]
    ids = [{version.id for version in side.versions()} for side in sides]
    assert ids[0] == ids[1] and len(ids[0]) == 7


def test_tags_and_evaluations_come_along(sides: tuple[Workspace, Workspace]) -> None:
    mine, theirs = sides
    write_tags(theirs.tags_file, {"good": theirs.version("v5").id, "both": theirs.version("v4").id, "lost": "ab" * 32})
    write_tags(mine.tags_file, {"both": mine.version("v4").id})
    evaluation = Evaluation(
        suite="facts",
        version="v5",
        version_id=theirs.version("v5").id,
        created="2026-01-31T12:00:00Z",
        metrics={"efficacy": 1.0},
        settings={},
        environment={},
    )
    write_evaluation(evaluations_folder(theirs, "v5"), evaluation)
    (theirs.edits / "v5" / "notes.txt").write_text("mine")
    report = import_(mine.root, theirs.root)
    assert report.tags == ("good",)
    assert mine.resolve("good") == "v6"
    assert read_tags(mine.tags_file)["both"] == mine.version("v4").id
    assert [text for text in report.warnings if "notes.txt" in text or "`both`" in text] == list(report.warnings)
    record = json.loads((mine.edits / "v6" / "evaluations" / "facts.json").read_bytes())
    assert (record["version"], record["version_id"]) == ("v6", evaluation.version_id)
    assert not (mine.edits / "v6" / "notes.txt").exists()


def test_a_version_without_its_facts_text_comes_as_it_is(sides: tuple[Workspace, Workspace]) -> None:
    mine, theirs = sides
    for name in ("facts.jsonl", "results.jsonl"):
        (theirs.edits / "v5" / name).unlink()
    report = import_(mine.root, theirs.root)
    assert report.warnings == ("the facts of v5 are withheld: they were published without their text",)
    proof = verify(mine.root)
    assert proof.ok and [one.version for one in proof.versions if one.withheld] == ["v6"]


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def _forge_id(folder: Path) -> None:
    _edit(folder / "v4" / "manifest.json", id="ab" * 32)


def _forge_facts(folder: Path) -> None:
    path = folder / "v5" / "facts.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Second", b"Forged"))


def _forge_patch(folder: Path) -> None:
    path = folder / "v5" / "patch.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def _grow_patch(folder: Path) -> None:
    with (folder / "v5" / "patch.safetensors").open("ab") as file:
        file.truncate(10**9)


def _link_version(folder: Path) -> None:
    shutil.move(folder / "v6", folder.parent / "elsewhere")
    (folder / "v6").symlink_to(folder.parent / "elsewhere")


def _link_file(folder: Path) -> None:
    shutil.move(folder / "v6" / "facts.jsonl", folder.parent / "elsewhere")
    (folder / "v6" / "facts.jsonl").symlink_to(folder.parent / "elsewhere")


def _link_evaluations(folder: Path) -> None:
    (folder / "v6" / "evaluations").symlink_to("/etc")


def _pipe(folder: Path) -> None:
    (folder / "v6" / "results.jsonl").unlink()
    os.mkfifo(folder / "v6" / "results.jsonl")


def _no_facts(folder: Path) -> None:
    (folder / "v5" / "facts.jsonl").unlink()


def _no_parent(folder: Path) -> None:
    shutil.rmtree(folder / "v4")


def _traversal(folder: Path) -> None:
    path = folder / "v4" / "manifest.json"
    record = json.loads(path.read_bytes())
    record["files"][0]["path"] = "../../outside"
    path.write_text(json.dumps(record))


def _other_name(folder: Path) -> None:
    _edit(folder / "v4" / "manifest.json", version="v9", parent="v3")


def _newer(folder: Path) -> None:
    _edit(folder / "v4" / "manifest.json", schema=2)


def _other_base(folder: Path) -> None:
    path = folder / "v1" / "manifest.json"
    record = json.loads(path.read_bytes())
    record["base"] |= {"fingerprint": "cd" * 32, "model": "other/base"}
    path.write_text(json.dumps(record))


def _bad_tags(folder: Path) -> None:
    (folder / "tags.json").write_text('{"schema": 1, "tags": {"../x": "1"}}')


def _foreign_evaluation(folder: Path) -> None:
    (folder / "v4" / "evaluations").mkdir()
    (folder / "v4" / "evaluations" / "facts.json").write_text('{"schema": 1}')


SPOILED: dict[str, tuple[Callable[[Path], None], type[ReviverError]]] = {
    "a forged id": (_forge_id, ManifestError),
    "forged facts": (_forge_facts, ManifestError),
    "a forged patch": (_forge_patch, ManifestError),
    "a patch that is longer than its manifest says": (_grow_patch, ManifestError),
    "a linked version": (_link_version, ManifestError),
    "a linked file": (_link_file, ManifestError),
    "linked evaluations": (_link_evaluations, ManifestError),
    "a pipe": (_pipe, ManifestError),
    "missing facts": (_no_facts, ManifestError),
    "a missing parent": (_no_parent, VersionNotFoundError),
    "a path that climbs": (_traversal, ManifestError),
    "a manifest of another version": (_other_name, ManifestError),
    "a newer manifest": (_newer, ManifestError),
    "another base": (_other_base, BaseMismatchError),
    "damaged tags": (_bad_tags, ManifestError),
    "an evaluation that is none": (_foreign_evaluation, ManifestError),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_not_sound_is_refused_and_nothing_is_taken(sides: tuple[Workspace, Workspace], name: str) -> None:
    mine, theirs = sides
    spoil, kind = SPOILED[name]
    before = workspaces.snapshot(mine.edits)
    spoil(theirs.edits)
    with pytest.raises(kind) as caught:
        import_(mine.root, theirs.root)
    assert caught.value.hint and "\n" not in caught.value.message
    assert workspaces.snapshot(mine.edits) == before
    assert mine.leftovers() == [] and not mine.pending_file.exists()
    assert {path.name for path in mine.edits.iterdir()} == {".gitattributes", "v1", "v2", "v3", "v4"}
    assert verify(mine.root).ok


def test_places_without_a_history_are_told(chained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty" / "edits").mkdir(parents=True)
    for place, said in ((tmp_path / "empty", "holds no versions"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(WorkspaceError, match=said):
            import_(chained.root, place)


def test_an_import_killed_at_every_instant_takes_all_or_nothing(
    sides: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    mine, theirs = sides
    kept = workspaces.snapshot(mine.edits)
    call = 1
    while True:
        here = Workspace(tmp_path / f"crash-{call}")
        shutil.copytree(mine.root, here.root, symlinks=True)
        ended = not killed_at(call, lambda: import_(here.root, theirs.root))  # noqa: B023 - called at once.
        # A reader without the lock sees whole versions on whole parents only.
        assert [version.name for version in here.chain("head")] == ["v1", "v3", "v4"]
        assert all(here.chain(name) for name in here.version_names())
        happened = here.pending_file.exists()
        with here.lock("status"):
            pass
        taken = here.version_names()[4:]
        assert taken == ["v5", "v6", "v7"] or (taken == [] and not happened and not ended)
        assert here.leftovers() == [] and not here.pending_file.exists()
        after = workspaces.snapshot(here.edits)
        assert {path: after[path] for path in kept} == kept
        import_(here.root, theirs.root)
        assert here.version_names() == ["v1", "v2", "v3", "v4", "v5", "v6", "v7"]
        shutil.rmtree(here.root)
        if ended:
            break
        call += 7
    assert call > 60


def full_disk(*arguments: object) -> None:
    raise ResourceError("no space left on the disk", hint="make room")


@pytest.mark.parametrize("call", ["fsync_folder", "write_head", "append_operation", "remove_intent", "remove_tree"])
def test_a_disk_that_fills_after_the_intent_is_told_as_done(
    sides: tuple[Workspace, Workspace], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    mine, theirs = sides
    with monkeypatch.context() as patched:
        patched.setattr(f"reviver.history.intent.{call}", full_disk)
        with pytest.raises(UnfinishedError, match=r"3 versions are taken in, but .*no space left") as caught:
            import_(mine.root, theirs.root)
    assert caught.value.hint is not None and caught.value.hint.endswith("and the tags come as well")
    with mine.lock("status"):
        pass
    assert mine.version_names() == [f"v{number}" for number in range(1, 8)]
    assert mine.leftovers() == [] and not mine.pending_file.exists()
    assert [one.verb for one in mine.operations()].count("import") == 1
    assert verify(mine.root).ok
    assert import_(mine.root, theirs.root).imported == ()


@pytest.mark.parametrize("call", ["sync_tree", "write_intent"])
def test_a_disk_that_fills_before_the_intent_has_taken_nothing(
    sides: tuple[Workspace, Workspace], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    mine, theirs = sides
    before = workspaces.snapshot(mine.edits)
    with monkeypatch.context() as patched:
        patched.setattr(f"reviver.history.incoming.{call}", full_disk)
        with pytest.raises(ResourceError) as caught:
            import_(mine.root, theirs.root)
    assert not isinstance(caught.value, UnfinishedError)
    assert workspaces.snapshot(mine.edits) == before
    assert mine.leftovers() == [] and not mine.pending_file.exists()
    assert len(import_(mine.root, theirs.root).imported) == 3


def test_the_head_follows_its_version_to_a_new_name(sides: tuple[Workspace, Workspace]) -> None:
    """What the other side sees after it pulled the merged history: its v4 is called v5 now, and v4 is another's."""
    mine, theirs = sides
    import_(mine.root, theirs.root)
    undo(theirs.root)
    undo(theirs.root)
    assert theirs.head() == "v4"
    shutil.rmtree(theirs.edits)
    shutil.copytree(mine.edits, theirs.edits)
    assert theirs.head() == "v5"
    assert theirs.version("head").manifest.message == "Theirs"
    shutil.rmtree(theirs.edits / "v5")
    with pytest.raises(WorkspaceError, match="called v4, which is gone; v4 is another version now"):
        read_head(theirs)
    shutil.rmtree(theirs.edits / "v4")
    assert theirs.head() == "v4", "a version that is missing keeps its name"
