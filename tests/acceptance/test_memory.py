"""Editors that remember: across versions, through an undo, on a branch, after the memory was lost, and never another base's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FACTS, make_checkpoint, write_facts
from torch import Tensor

from reviver.editing import session
from reviver.editing.base import open_base, open_pinned, put_version
from reviver.editing.keys import SubjectStates
from reviver.editing.rounds import RoundRecord, run_round
from reviver.errors import BaseMismatchError, WorkspaceError
from reviver.history.chain import chain_deltas
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init
from reviver.verbs.made import MakeChoice
from reviver.verbs.revert import revert
from reviver.verbs.squash import squash
from reviver.verbs.undo import undo
from reviver.verbs.verify import verify

EDITORS = {
    "memit": {"memory": "keys"},
    "rect": {"memory": "keys"},
    "prune": {"ceiling": 0.9},
    "alphaedit": {"share": 0.6, "l2": 0.1},
    "nse": {"alpha": 0.01, "upper": 1e6},
    "ultraedit": {"rate": 1e-3},
}


class Bench:
    """A tiny model in a workspace, with two files of facts about different subjects."""

    def __init__(self, folder: Path, tmp_path: Path) -> None:
        self.folder = folder
        with (folder / "reviver.toml").open("a", encoding="utf-8") as file:
            for name, values in EDITORS.items():
                lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
                file.write("\n".join([f"\n[editors.{name}]", *lines, ""]))
        self.base = make_checkpoint(tmp_path / "base")
        init(folder, str(self.base), settings=self.settings("memit"))
        half = len(FACTS) // 2
        self.files = [
            write_facts(tmp_path / f"{name}.jsonl", part)
            for name, part in (("first", FACTS[:half]), ("second", FACTS[half:]), ("both", FACTS))
        ]
        self.round_size = half

    def settings(self, editor: str, filter_name: str = "revive", round_size: int | None = None) -> Settings:
        given = {"apply.editor": editor, "apply.filter": filter_name, "apply.round_size": round_size}
        return Settings.load(self.folder, given)

    def apply(self, which: int, editor: str, *, parent: str = "head", filter_name: str = "revive") -> str:
        settings = self.settings(editor, filter_name, self.round_size)
        request = ApplyRequest(facts=self.files[which], parent=parent, checkpoint=False)
        version = apply(self.folder, request, settings=settings).version
        assert version is not None
        return version

    def deltas(self, version: str) -> dict[str, Tensor]:
        """Return what a version adds to the base's tensors, in float64."""
        workspace = Workspace.open(self.folder)
        total: dict[str, Tensor] = {}
        for one in workspace.chain(version):
            stored = load_file(one.patch_file)
            for name in {key.rpartition(".")[0] for key in stored}:
                if f"{name}.dense" in stored:
                    added = stored[f"{name}.dense"].double()
                else:
                    added = stored[f"{name}.left"].double() @ stored[f"{name}.right"].double()
                total[name] = total.get(name, torch.zeros_like(added)) + added
        return total


@pytest.fixture
def bench(tmp_path: Path, fast_workspace: Path) -> Bench:
    return Bench(fast_workspace, tmp_path)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return how far two sums of updates are apart, relative to their size."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)


def assert_keys(bench: Bench, name: str, prefixes: object) -> None:
    """What is kept of a version is what its own weights make of its facts, behind prefixes that there are."""
    assert isinstance(prefixes, list) and prefixes
    workspace = Workspace.open(bench.folder)
    pin = workspace.pin()
    folder = open_base(pin)
    model = open_pinned(pin, folder, bench.settings("memit"), torch.device("cpu"))
    chain = workspace.chain(name)
    put_version(model, folder, chain_deltas(chain, pin))
    states = SubjectStates(model, chain[-1].facts(), prefixes)
    for layer, tensor in zip(pin.layers, pin.edited, strict=True):
        saved = load_file(workspace.memory_file(chain[-1].id, f"{tensor}.keys"))["keys"]
        assert torch.allclose(saved, states.measure(layer)[0], atol=1e-6)


@pytest.mark.parametrize("filter_name", ["none", "revive", "constrained"])
@pytest.mark.parametrize("editor", EDITORS)
def test_two_versions_are_what_two_rounds_of_one_version_are(bench: Bench, editor: str, filter_name: str) -> None:
    """What is remembered across versions is what is remembered across rounds, whatever happened in between."""
    whole = bench.apply(2, editor, filter_name=filter_name)
    undo(bench.folder)
    first = bench.apply(0, editor, filter_name=filter_name)
    bench.apply(1, editor, filter_name=filter_name)
    undo(bench.folder)
    branch = bench.apply(1, editor, parent=first, filter_name=filter_name)
    assert distance(bench.deltas(branch), bench.deltas(whole)) < 1e-4
    assert verify(bench.folder).ok


@pytest.mark.parametrize("editor", EDITORS)
def test_an_interrupted_apply_goes_on_where_it_was(bench: Bench, editor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patch of a resumed apply is that of an uninterrupted one, to the byte."""
    whole = bench.apply(2, editor)
    undo(bench.folder)
    solved: list[int] = []

    def counted(*arguments: Any, **named: Any) -> RoundRecord:
        if len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(1)
        return run_round(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(session, "run_round", counted)
        with pytest.raises(KeyboardInterrupt):
            bench.apply(2, editor)
    assert Workspace.open(bench.folder).version_names() == [whole]
    remaining: list[int] = []
    monkeypatch.setattr(session, "run_round", lambda *a, **n: (remaining.append(1), run_round(*a, **n))[1])
    resumed = bench.apply(2, editor)
    assert len(remaining) == len(FACTS) - 2
    workspace = Workspace.open(bench.folder)
    assert workspace.version(resumed).patch_file.read_bytes() == workspace.version(whole).patch_file.read_bytes()
    assert workspace.version(resumed).manifest.rounds == workspace.version(whole).manifest.rounds
    assert not workspace.rounds.exists()
    for name in workspace.pin().edited:
        for kept in (name, f"{name}.keys"):
            own, other = (workspace.memory_file(workspace.version(one).id, kept) for one in (resumed, whole))
            assert own.exists() == other.exists()
            assert not own.exists() or own.read_bytes() == other.read_bytes()


def test_rounds_of_another_job_or_damaged_ones_are_not_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def interrupted(*arguments: Any, **named: Any) -> RoundRecord:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_round(*arguments, **named)

    monkeypatch.setattr(session, "run_round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.apply(2, "memit")
    workspace = Workspace.open(bench.folder)
    saved = workspace.rounds / "000001.safetensors"
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        bench.apply(2, "memit")
    # Another filter is another job: it begins at its own first round.
    calls[:] = [0] * 10
    bench.apply(2, "memit", filter_name="none")
    assert len(calls) == 10 + len(FACTS) and verify(bench.folder).ok


def test_an_undo_takes_the_memory_back(bench: Bench) -> None:
    bench.apply(0, "alphaedit")
    undo(bench.folder)
    alone = bench.apply(1, "alphaedit")
    undo(bench.folder)
    again = bench.apply(1, "alphaedit", parent="v0")
    assert distance(bench.deltas(alone), bench.deltas(again)) == 0.0
    after_first = bench.apply(1, "alphaedit", parent="v1")
    workspace = Workspace.open(bench.folder)
    own = load_file(workspace.version(after_first).patch_file)
    other = load_file(workspace.version(alone).patch_file)
    assert any(not torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize("editor", ["memit", "alphaedit", "nse"])
def test_lost_keys_are_read_again(bench: Bench, editor: str) -> None:
    """Also the keys of versions that were made by an editor that remembers nothing."""
    first = bench.apply(0, editor)
    expected = bench.apply(1, editor)
    shutil.rmtree(bench.folder / ".reviver" / "memory")
    again = bench.apply(1, editor, parent=first)
    assert distance(bench.deltas(again), bench.deltas(expected)) < 1e-4
    assert_keys(bench, first, Workspace.open(bench.folder).version(first).manifest.rounds[0]["prefixes"])


@pytest.mark.parametrize("other", ["alphaedit", "nse", "memit"])
@pytest.mark.parametrize("editor", ["prune", "ultraedit"])
def test_an_editor_of_keys_leaves_what_another_remembers(bench: Bench, editor: str, other: str) -> None:
    """It reads the keys of the other's version, which that one has not kept, and keeps them beside its sum or moments."""
    first = bench.apply(0, editor)
    expected = bench.apply(1, editor)
    undo(bench.folder)
    workspace = Workspace.open(bench.folder)
    folder = workspace.memory / workspace.version(first).id
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bench.apply(1, other)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.items() < kept.items()
    bench.apply(1, editor)
    again = bench.apply(1, editor, parent=first)
    assert distance(bench.deltas(again), bench.deltas(expected)) == 0.0


@pytest.mark.parametrize("editor", ["prune", "ultraedit"])
def test_what_cannot_be_made_again_is_refused_by_name(bench: Bench, editor: str) -> None:
    bench.apply(0, editor)
    shutil.rmtree(bench.folder / ".reviver" / "memory")
    with pytest.raises(WorkspaceError, match="v1"):
        bench.apply(1, editor)
    assert Workspace.open(bench.folder).version_names() == ["v1"]


def test_prune_counts_what_other_editors_did(bench: Bench) -> None:
    """The total that PRUNE holds back is that of all edits, not of its own alone."""
    bench.apply(0, "memit")
    version = bench.apply(1, "prune")
    workspace = Workspace.open(bench.folder)
    chain = workspace.chain(version)
    for name in workspace.pin().edited:
        memory = load_file(workspace.memory_file(chain[-1].id, name))
        total = memory["left"].double() @ memory["right"].double() + memory.get("values", torch.zeros(1)).double()
        stored = load_file(chain[0].patch_file)
        first = stored[f"{name}.left"].double() @ stored[f"{name}.right"].double()
        # What is left of the total without the first version is PRUNE's own, of the rank of its facts.
        values = torch.linalg.svdvals(total - first)
        assert values[len(FACTS) - len(FACTS) // 2] < 1e-5 * values[0]


@pytest.mark.parametrize("editor", EDITORS)
def test_what_was_reverted_is_forgotten(bench: Bench, editor: str) -> None:
    """The version goes, its revert stays in the chain: the next edit is what it is on the base."""
    alone = bench.apply(2, editor)
    first = bench.apply(1, editor, parent="v0")
    revert(bench.folder, first, settings=bench.settings(editor), choice=MakeChoice(checkpoint=False))
    after = bench.apply(2, editor)
    assert [one.name for one in Workspace.open(bench.folder).chain(after)] == ["v2", "v3", "v4"]
    assert distance(bench.deltas(after), bench.deltas(alone)) < 1e-4


def test_a_revert_that_was_reverted_takes_nothing_back(bench: Bench) -> None:
    bench.apply(0, "prune")
    expected = bench.apply(1, "prune")
    undo(bench.folder)
    for name in ("v1", "v3"):
        revert(bench.folder, name, settings=bench.settings("prune"), choice=MakeChoice(checkpoint=False))
    again = bench.apply(1, "prune")
    assert distance(bench.deltas(again), bench.deltas(expected)) < 1e-4


def test_keys_of_a_squash_are_read_in_the_same_contexts(bench: Bench) -> None:
    first = bench.apply(0, "alphaedit")
    second = bench.apply(1, "alphaedit")
    prefixes = Workspace.open(bench.folder).version(first).manifest.rounds[0]["prefixes"]
    squash(bench.folder, f"v0..{second}", settings=bench.settings("alphaedit"), choice=MakeChoice(checkpoint=False))
    bench.apply(2, "alphaedit")
    assert_keys(bench, "v3", prefixes)


def test_a_memory_of_another_base_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.apply(0, "alphaedit")
    workspace = Workspace.open(bench.folder)
    for path in (workspace.memory / workspace.version("v1").id).glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "base_sha256": "0" * 64}))
    with pytest.raises(BaseMismatchError, match="another base"):
        bench.apply(1, "alphaedit")
    assert workspace.version_names() == ["v1"]
