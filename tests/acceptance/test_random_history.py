"""Operations drawn at random, against a small model of what must hold: after each one every version still rebuilds to its hash.

The model knows of each version only which components of which applied patches are in its sum, as a set: an edit adds its own, a
revert turns round what a version did, a merge takes what either side changed. The bytes are then summed here, in fractions.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import rounded
from safetensors.torch import load_file
from tiny_models import make_checkpoint, write_facts

from reviver.errors import WorkspaceError
from reviver.history.chain import known_facts
from reviver.history.verification import check_rebuild, rebuild
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress
from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.checkout import checkout
from reviver.verbs.gc import gc
from reviver.verbs.init import init
from reviver.verbs.made import MakeChoice
from reviver.verbs.merge import merge
from reviver.verbs.redo import redo
from reviver.verbs.revert import revert
from reviver.verbs.squash import squash
from reviver.verbs.undo import undo
from reviver.verbs.verify import verify

Piece = tuple[str, int]
CHECKED_ENTRIES = 24
REBUILT_EACH_TIME = 3


@dataclass
class Known:
    """What the model knows of one version."""

    parent: str
    live: frozenset[Piece]
    subjects: tuple[str, ...] = ()
    brought: str | None = None
    """The version that was merged, or squashed."""
    exact: bool = True
    """No patch below it had to become a float32 matrix, so that its bytes are those of the components."""


@dataclass
class Model:
    """What must hold."""

    versions: dict[str, Known] = field(default_factory=lambda: {"v0": Known(parent="", live=frozenset())})
    head: str = "v0"
    undone: list[tuple[str, str]] = field(default_factory=list)
    moves: list[tuple[str, str]] = field(default_factory=list)
    checkpoints: set[str] = field(default_factory=set)

    def chain(self, name: str) -> list[str]:
        chain = []
        while name != "v0":
            chain.append(name)
            name = self.versions[name].parent
        return chain[::-1]

    def move(self, name: str) -> None:
        self.moves.append((self.head, name))
        self.undone.clear()
        self.head = name

    def add(self, name: str, known: Known, *, checkpoint: bool) -> None:
        assert name == f"v{len(self.versions)}", "numbers are used once, in order"
        self.versions[name] = known
        if checkpoint:
            self.checkpoints.add(name)
        self.move(name)

    def ever(self, name: str) -> set[Piece]:
        """Return all components that were live in a version or in anything that led to it."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one and one not in seen:
                seen.add(one)
                waiting += [self.versions[one].parent, self.versions[one].brought or ""]
        return {piece for one in seen for piece in self.versions[one].live}

    def effect(self, name: str) -> tuple[frozenset[Piece], frozenset[Piece]]:
        below = self.versions[self.versions[name].parent].live
        return self.versions[name].live - below, below - self.versions[name].live


class History:
    """A workspace and its model."""

    def __init__(self, folder: Path, tmp_path: Path, seed: int) -> None:
        self.folder, self.tmp_path = folder, tmp_path
        self.random = random.Random(seed)
        self.base = make_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
        self.settings = Settings.load(folder, {"targets.steps": 1, "targets.prefixes": 0})
        init(folder, str(self.base), settings=self.settings)
        self.workspace = Workspace.open(folder)
        self.model = Model()
        self.tensors = load_file(self.base / "model.safetensors")
        self.factors: dict[str, dict[str, torch.Tensor]] = {}
        self.stamps: dict[str, tuple[int, int]] = {}
        self.count = 0

    # Operations; each returns whether it was done, or the reason why it was refused.

    def choice(self) -> MakeChoice:
        return MakeChoice(measure=False, checkpoint=self.random.random() < 0.3)

    def any_version(self) -> str:
        return self.random.choice(list(self.model.versions))

    def apply(self, parent: str | None = None) -> None:
        parent = parent or self.model.head
        subjects = tuple(f"Subject {self.count}-{number}" for number in range(self.random.choice((1, 1, 2))))
        self.count += 1
        records = [{"prompt": "{} is", "subject": one, "target_new": "Tessel"} for one in subjects]
        facts = write_facts(self.tmp_path / "facts.jsonl", tuple(records))
        checkpoint = self.random.random() < 0.3
        request = ApplyRequest(facts=facts, parent=parent, checkpoint=checkpoint)
        name = apply(self.folder, request, settings=self.settings).version
        assert name is not None
        below = self.model.versions[parent]
        self.factors[name] = load_file(self.folder / "edits" / name / "patch.safetensors")
        own = frozenset((name, number) for number in range(len(subjects)))
        known = Known(parent=parent, live=below.live | own, subjects=subjects, exact=below.exact)
        self.model.add(name, known, checkpoint=checkpoint)

    def branch(self) -> None:
        self.apply(self.any_version())

    def revert(self) -> str | None:
        chain = self.model.chain(self.model.head)
        if not chain:
            return "the base"
        name, choice = self.random.choice(chain), self.choice()
        subjects = self.model.versions[name].subjects
        single = self.random.randrange(len(subjects)) if len(subjects) > 1 and self.random.random() < 0.5 else None
        ids = () if single is None else (self.workspace.version(name).facts()[single].id,)
        added, removed = self.model.effect(name)
        if single is not None:
            added, removed = frozenset([(name, single)]), frozenset()
        head = self.model.versions[self.model.head]
        live = (head.live - added) | removed
        try:
            report = revert(self.folder, name, settings=self.settings, facts=ids, choice=choice)
        except WorkspaceError as error:
            assert (
                "taken back already" in error.message
                or "is left to take back" in error.message
                or (not head.exact and "does not keep its facts apart" in error.message)
            ), error.message
            return error.message
        assert live != head.live
        self.made(report.version, self.model.head, live, report.losses == (), choice)
        return None

    def merge(self) -> str | None:
        ours, theirs, choice = self.any_version(), self.any_version(), self.choice()
        chains = self.model.chain(ours), self.model.chain(theirs)
        common = [one for one, other in zip(*chains, strict=False) if one == other]
        before = self.model.versions[common[-1] if common else "v0"].live
        a, b = self.model.versions[ours].live, self.model.versions[theirs].live
        live = frozenset(one for one in a | b | before if (one in a if (one in a) == (one in b) else one not in before))
        try:
            report = merge(self.folder, ours, theirs, settings=self.settings, choice=choice)
        except WorkspaceError as error:
            refusals = (
                "has everything of",
                "stands on",
                "is left to merge",
                "has already, and others",
                "by a merge of",
            )
            assert any(text in error.message for text in (*refusals, "in different ways", "facts apart")), error.message
            return error.message
        # What one side had from the other by an earlier merge, and took back since, stays away; only that may differ.
        held = {subject for subject, _ in known_facts(self.workspace.chain(report.version))}
        found = frozenset(piece for piece in a | b | before if self.subject(piece) in held)
        settled = (b - a - self.model.ever(ours)) | (a - b - self.model.ever(theirs)) | (a & b) | before
        assert found <= a | b | before and settled - found == settled - live and found - live <= (a ^ b)
        exact = report.losses == () and self.model.versions[theirs].exact
        self.made(report.version, ours, found, exact, choice, brought=theirs)
        return None

    def subject(self, piece: Piece) -> str:
        return self.model.versions[piece[0]].subjects[piece[1]]

    def squash(self) -> str | None:
        last, choice = self.any_version(), self.choice()
        chain = self.model.chain(last)
        if len(chain) < 2:
            return "too short"
        first = ["v0", *chain][self.random.randrange(len(chain) - 1)]
        try:
            report = squash(self.folder, f"{first}..{last}", settings=self.settings, choice=choice)
        except WorkspaceError as error:
            assert "to the byte" in error.message, error.message
            assert self.model.versions[first].live == self.model.versions[last].live
            return error.message
        assert report.exact
        known = self.model.versions[last]
        self.made(report.version, first, known.live, report.losses == () and known.exact, choice, brought=last)
        return None

    def made(
        self,
        name: str,
        parent: str,
        live: frozenset[Piece],
        exact: bool,
        choice: MakeChoice,
        brought: str | None = None,
    ) -> None:
        exact = exact and self.model.versions[parent].exact
        known = Known(parent=parent, live=live, brought=brought, exact=exact)
        self.model.add(name, known, checkpoint=choice.checkpoint)

    def undo(self) -> str | None:
        if not self.model.moves:
            with pytest.raises(WorkspaceError, match="nothing to undo"):
                undo(self.folder)
            return "nothing"
        before, after = self.model.moves.pop()
        assert (undo(self.folder).head_after, after) == (before, self.model.head)
        self.model.undone.append((before, after))
        self.model.head = before
        return None

    def redo(self) -> str | None:
        if not self.model.undone:
            with pytest.raises(WorkspaceError, match="nothing to redo"):
                redo(self.folder)
            return "nothing"
        before, after = self.model.undone.pop()
        assert redo(self.folder).head_after == after
        self.model.moves.append((before, after))
        self.model.head = after
        return None

    def gc(self) -> None:
        keep = self.random.randrange(3)
        for name in gc(self.folder, keep=keep).removed:
            self.model.checkpoints.remove(name)

    def checkout(self) -> str | None:
        name = self.any_version()
        assert checkout(self.folder, name).already == (name in self.model.checkpoints)
        self.model.checkpoints.add(name)
        return None

    # What must hold.

    def check(self, *, everything: bool) -> None:
        model = self.model
        assert self.workspace.head() == model.head
        assert self.workspace.version_names() == list(model.versions)[1:]
        for name, known in list(model.versions.items())[1:]:
            assert self.workspace.version(name).parent == known.parent
        written = {path.name for path in (self.folder / "checkpoints").iterdir() if path.is_dir()}
        assert written == model.checkpoints
        self.check_nothing_changed()
        names = list(model.versions)[1:]
        if not names:
            return
        chosen = (
            names
            if everything
            else {model.head, names[-1], *self.random.sample(names, min(REBUILT_EACH_TIME, len(names)))}
        )
        for name in chosen:
            if name != "v0":
                self.check_version(name)
        if everything:
            assert verify(self.folder).ok

    def check_nothing_changed(self) -> None:
        """Every file of a version is the one that was written first."""
        now = {}
        for folder, _, files in os.walk(self.folder / "edits"):
            for name in files:
                state = os.stat(os.path.join(folder, name))
                now[os.path.join(folder, name)] = (state.st_size, state.st_mtime_ns)
        assert self.stamps.items() <= now.items()
        self.stamps = now

    def check_version(self, name: str) -> None:
        version, known = self.workspace.version(name), self.model.versions[name]
        chain = self.workspace.chain(name)
        assert check_rebuild(version, rebuild(self.workspace.pin(), chain, NullProgress())) == []
        held = {subject for subject, _ in known_facts(chain)}
        assert held == {self.subject(piece) for piece in known.live}
        checkpoint = self.folder / "checkpoints" / name / "model.safetensors"
        if checkpoint.exists():
            stored = load_file(checkpoint)
            for tensor, values in stored.items():
                if any(f"{tensor}.left" in factors for factors in self.factors.values()):
                    self.check_values(tensor, values, known)
                else:
                    assert torch.equal(values, self.tensors[tensor])

    def check_values(self, tensor: str, values: torch.Tensor, known: Known) -> None:
        """Some entries, drawn at random, are the sum of the base and the live components."""
        base = self.tensors[tensor]
        pairs = []
        for origin, index in known.live:
            left, right = (self.factors[origin][f"{tensor}.{side}"] for side in ("left", "right"))
            pairs.append((left[:, index].double().tolist(), right[index].double().tolist()))
        rows, columns = base.shape
        for _ in range(CHECKED_ENTRIES):
            row, column = self.random.randrange(rows), self.random.randrange(columns)
            total = Fraction(float(base[row, column]))
            total += sum((Fraction(left[row]) * Fraction(right[column]) for left, right in pairs), Fraction(0))
            if known.exact:
                assert Fraction(float(values[row, column])) == rounded(total, torch.bfloat16)
            else:
                np.testing.assert_allclose(float(values[row, column]), float(total), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize(
    "operations", [12, pytest.param(500, marks=[pytest.mark.long, pytest.mark.timeout(7200)])]
)  # fmt: skip
def test_random_operations(
    operations: int,
    tmp_path: Path,
    fast_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    # No power is cut here, and waiting for the disk 20 times a version is most of what takes long.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    history = History(fast_workspace, tmp_path, seed=5)
    weights: dict[Callable[[], str | None], int] = {
        history.apply: 5, history.branch: 3, history.revert: 5, history.merge: 4, history.squash: 2,
        history.undo: 3, history.redo: 2, history.gc: 1, history.checkout: 1,
    }  # fmt: skip
    done: dict[str, int] = {}
    for number in range(1, operations + 1):
        operation = history.random.choices(list(weights), list(weights.values()))[0]
        refused = operation()
        name = operation.__name__ + ("" if refused is None else " (refused)")
        done[name] = done.get(name, 0) + 1
        history.check(everything=number % 50 == 0 or number == operations)
    record_property("operations", dict(sorted(done.items())))
    assert sum(done.values()) == operations
