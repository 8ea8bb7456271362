"""verify, level by level: what each reads, and whether patches keep what the filter promises, by numpy's SVD of the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workspaces

from reviver.checkpoint.delta import Delta, DenseDelta, LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.errors import UsageError
from reviver.history.manifest import Manifest
from reviver.history.patch import Patch
from reviver.history.workspace import Workspace
from reviver.spectral.basis import choose_rank
from reviver.verbs.verify import LEVELS, VerifyReport, verify

Check = Callable[..., dict[str, Any]]
Call = Callable[..., Any]


def leak(workspace: Workspace, version: str, tensor: str, rank: int = workspaces.PROTECTED) -> float:
    """Return the larger of ‖U_kᵀ Δ‖ / ‖Δ‖ and ‖Δ V_k‖ / ‖Δ‖ without the code under test."""
    raw = CheckpointFolder.open(Path(workspace.pin().folder)).read_tensor(tensor)
    outer, _, inner = np.linalg.svd(workspaces.values_of(raw).reshape(workspaces.ROWS, workspaces.COLUMNS))
    delta = workspaces.product(Patch.open(workspace.edits / version / "patch.safetensors").delta(tensor))
    sides = np.linalg.norm(outer[:, :rank].T @ delta), np.linalg.norm(delta @ inner[:rank].T)
    return float(max(sides) / np.linalg.norm(delta))


def forge(workspace: Workspace, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of the newest version, with an id that follows."""
    path = workspace.edits / name / "manifest.json"
    record = json.loads(path.read_bytes())
    change(record)
    manifest = Manifest.from_json(json.dumps(record).encode())
    record["id"] = manifest.expected_id(workspace.version_id(manifest.parent))
    path.write_text(json.dumps(record))
    if workspace.head_file.read_bytes().startswith(name.encode()):
        workspace.head_file.write_text(f"{name}\n")


def problems(workspace: Workspace, level: str = "filter", version: str | None = None) -> list[tuple[str, str | None]]:
    report = verify(workspace.root, version, level=level)
    assert report.level == level and report.ok is not bool(report.findings)
    return [(one.version, one.tensor) for one in report.findings]


def guarantees(report: VerifyReport) -> dict[str, tuple[int, float | None, int]]:
    return {
        one.version: (one.guarantee.tensors, one.guarantee.leak, one.guarantee.undetermined)
        for one in report.versions
        if one.guarantee is not None
    }


@pytest.fixture
def unfiltered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let versions claim the filter over whatever patch they are given."""
    monkeypatch.setattr(workspaces, "filtered", lambda base, name, delta: delta)


def one_sided(side: str) -> Callable[[CheckpointFolder, str, Delta], Delta]:
    """Return a filter that forgets one side."""
    whole = workspaces.filtered

    def half(base: CheckpointFolder, name: str, delta: Delta) -> Delta:
        found = whole(base, name, delta)
        assert isinstance(delta, LowRankDelta) and isinstance(found, LowRankDelta)
        return LowRankDelta(found.left, delta.right) if side == "left" else LowRankDelta(delta.left, found.right)

    return half


# The levels.


def test_what_each_level_reads_and_tells(chained: Workspace, check: Check) -> None:
    told = {
        "history": ["base: not read, 0 findings", "everything holds up to level history"],
        "bytes": ["base: 7 files read, 0 findings", "7 files read", "everything holds up to level bytes"],
        "rebuild": ["2 tensors", "everything holds up to level rebuild"],
        "filter": ["2 tensors, leak", "everything holds\n"],
    }
    assert tuple(told) == LEVELS
    for depth, (level, human) in enumerate(told.items()):
        fields = check(chained, "verify", "--level", level, human=human, quiet="ok")
        assert (fields["level"], fields["base_files"]) == (level, 7 if depth else 0)
        for one in fields["versions"]:
            assert (one["checkpoint"], one["rebuilt"]) == (depth > 0, depth > 1)
            assert (one["guarantee"] is not None) == (depth > 2)
    assert check(chained, "verify", human=[], quiet="ok")["level"] == "filter"


def test_the_history_is_proven_without_any_weights(chained: Workspace, call: Call) -> None:
    shutil.rmtree(chained.pin().folder)
    shutil.rmtree(chained.checkpoints)
    assert problems(chained, "history") == []
    assert call("verify", "--level", "history", "-C", str(chained.root)).code == 0
    assert call("verify", "--level", "bytes", "-C", str(chained.root)).code == 3
    # What lies in `edits/` is read: facts, patches, results, manifests.
    path = chained.edits / "v2" / "patch.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert problems(chained, "history") == [("v2", None)]


def test_each_level_finds_what_those_before_it_cannot(chained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = chained.checkpoint("v1") / "config.json"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"tiny", b"evil"))
    assert [problems(chained, level) for level in LEVELS] == [[], *[[("v1", None)]] * 3]
    path.write_bytes(kept)
    record = json.loads((chained.edits / "v3" / "manifest.json").read_bytes())
    result = record["tensors"][0]["result_sha256"]
    forge(chained, "v3", lambda record: record["tensors"][0].update(result_sha256="ab" * 32))
    assert [bool(problems(chained, level)) for level in LEVELS] == [False, False, True, True]
    forge(chained, "v3", lambda record: record["tensors"][0].update(result_sha256=result))
    monkeypatch.setattr(workspaces, "filtered", lambda base, name, delta: delta)
    workspaces.add_version(chained, [], {workspaces.FIRST: workspaces.low_rank(7)})
    assert [problems(chained, level) for level in LEVELS] == [[], [], [], [("v4", workspaces.FIRST)]]


def test_a_level_that_is_none(chained: Workspace, call: Call) -> None:
    with pytest.raises(UsageError, match="`all` is no level of proof"):
        verify(chained.root, level="all")
    outcome = call("verify", "--level", "all", "-C", str(chained.root))
    assert outcome.code == 2 and "history, bytes, rebuild, filter" in outcome.stderr


# The guarantee.


def test_the_leak_is_what_numpy_finds(chained: Workspace) -> None:
    found = guarantees(verify(chained.root))
    assert {name: proof[0] for name, proof in found.items()} == {"v1": 1, "v2": 2, "v3": 1}
    for name, tensors in (
        ("v1", [workspaces.FIRST]),
        ("v2", [workspaces.FIRST, workspaces.SECOND]),
        ("v3", [workspaces.FIRST]),
    ):
        expected = max(leak(chained, name, tensor) for tensor in tensors)
        assert 0 < expected < 1e-6
        # As close as the noise of float64 lets two ways to compute a number of 1e-8 be.
        assert found[name][1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("delta", [workspaces.low_rank(7), workspaces.dense(7)], ids=["factors", "dense"])
def test_a_claim_over_an_unfiltered_patch_is_found(
    chained: Workspace, unfiltered: None, delta: Delta, check: Check
) -> None:
    workspaces.add_version(chained, [], {workspaces.FIRST: delta, workspaces.SECOND: delta})
    assert problems(chained, "rebuild") == []
    fields = check(
        chained,
        "verify",
        human=["of its patch lies in the base's 2 leading directions, which it claims to keep out of"],
        stderr=[f"error: v4 {workspaces.FIRST}: ", "(and 1 more finding)", "dropped with `reviver revert v4`"],
        quiet="failed",
        code=3,
    )
    assert [(one["version"], one["tensor"]) for one in fields["findings"]] == [
        ("v4", workspaces.FIRST),
        ("v4", workspaces.SECOND),
    ]
    (proof,) = (one["guarantee"] for one in fields["versions"] if one["version"] == "v4")
    expected = max(leak(chained, "v4", name) for name in workspaces.NAMES)
    assert expected > 0.1
    assert proof == {"tensors": 2, "leak": pytest.approx(expected, rel=1e-9), "undetermined": 0}
    # What stands on it is told of it too; what does not is not.
    workspaces.add_version(chained, [], {workspaces.FIRST: delta}, parent="v1")
    assert ("v4", workspaces.FIRST) not in problems(chained, version="v5")
    workspaces.add_version(chained, [], {workspaces.FIRST: delta}, parent="v4")
    assert ("v4", workspaces.FIRST) in problems(chained, version="v6")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_patch_that_was_filtered_on_one_side_only_is_found(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    monkeypatch.setattr(workspaces, "filtered", one_sided(side))
    workspaces.add_version(workspace, [], {workspaces.FIRST: workspaces.low_rank(1)})
    assert problems(workspace) == [("v1", workspaces.FIRST)]


def test_a_patch_without_a_filter_is_held_to_nothing(chained: Workspace, unfiltered: None, check: Check) -> None:
    workspaces.add_version(chained, [], {workspaces.FIRST: workspaces.low_rank(7)})

    def disclaim(record: dict[str, Any]) -> None:
        record["filter"] = {"name": "none", "rank": None, "energy": None}
        record["tensors"][0]["protected_rank"] = None

    forge(chained, "v4", disclaim)
    check(chained, "verify", human=["claims none", "everything holds"], quiet="ok")
    assert guarantees(verify(chained.root))["v4"] == (0, None, 0)
    # The claim of a single tensor counts, as in a merge of filtered and other patches.
    forge(chained, "v4", lambda record: record["tensors"][0].update(protected_rank=2))
    assert problems(chained) == [("v4", workspaces.FIRST)]


@pytest.mark.parametrize(
    ("rank", "level", "said"),
    [
        (None, "filter", "the filter `revive` is claimed, but no protected rank for this tensor"),
        (0, "filter", "the filter `revive` is claimed, but no protected rank for this tensor"),
        (1, "filter", "was to protect k = 2, and the manifest claims only k = 1"),
        (6, "filter", "of its patch lies in the base's 6 leading directions"),
        (7, "history", "`protected_rank`"),
        (10**30, "history", "number"),
    ],
)
def test_ranks_that_are_not_the_filters(
    chained: Workspace, call: Call, rank: int | None, level: str, said: str
) -> None:
    """The tensors' entries are outside of the id, so that anybody may change them; the filter's own are not."""
    path = chained.edits / "v3" / "manifest.json"
    record = json.loads(path.read_bytes())
    record["tensors"][0]["protected_rank"] = rank
    path.write_text(json.dumps(record))
    report = verify(chained.root, level=level)
    assert any(one.version == "v3" and said in one.problem for one in report.findings)
    assert call("verify", "--level", level, "-C", str(chained.root)).code == 3


def test_an_energy_is_held_to(chained: Workspace) -> None:
    raw = CheckpointFolder.open(Path(chained.pin().folder)).read_tensor(workspaces.FIRST)
    squares = (
        np.linalg.svd(workspaces.values_of(raw).reshape(workspaces.ROWS, workspaces.COLUMNS), compute_uv=False) ** 2
    )
    held = float(squares[:2].sum() / squares.sum())
    for energy, sound in ((held - 1e-6, True), (held + 1e-6, False)):
        forge(chained, "v3", lambda record: record.update(filter={"name": "revive", "rank": None, "energy": energy}))  # noqa: B023 - called at once.
        assert (problems(chained) == []) is sound


# Singular values that are equal.


def diagonal_workspace(folder: Path, monkeypatch: pytest.MonkeyPatch, values: list[float]) -> Workspace:
    """Return a workspace whose first tensor has these singular values, with the axes for directions."""
    plain = workspaces.make_base

    def make_base(folder: Path, seed: int = 0) -> Path:
        base = plain(folder, seed)
        entry = CheckpointFolder.open(base).tensors[workspaces.FIRST]
        path = base / entry.shard
        data = bytearray(path.read_bytes())
        matrix = np.eye(workspaces.ROWS, workspaces.COLUMNS, dtype=np.float32) * np.float32(values)
        data[entry.start : entry.start + entry.nbytes] = workspaces.bf16(matrix)
        path.write_bytes(data)
        return base

    monkeypatch.setattr(workspaces, "make_base", make_base)
    return workspaces.make_workspace(folder)


def along(*axes: int) -> DenseDelta:
    """Return a matrix with something on these rows and columns only."""
    values = np.zeros((workspaces.ROWS, workspaces.COLUMNS), dtype=np.float32)
    values[np.ix_(axes, axes)] = np.random.default_rng(3).standard_normal((len(axes), len(axes)))
    return DenseDelta(values)


def test_a_subspace_that_the_base_does_not_determine_is_not_held_against_a_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfiltered: None, check: Check
) -> None:
    """σ₂ = σ₃: which of their directions is the second, no machine can say. The first is certain."""
    workspace = diagonal_workspace(tmp_path, monkeypatch, [4, 2, 2, 1, 0.5, 0.25])
    workspaces.add_version(workspace, [], {workspaces.FIRST: along(1, 2, 3, 4)})
    fields = check(workspace, "verify", human=["1 direction undetermined", "everything holds"], quiet="ok")
    assert fields["versions"][0]["guarantee"] == {"tensors": 1, "leak": 0.0, "undetermined": 1}
    workspaces.add_version(workspace, [], {workspaces.FIRST: along(0, 4)})
    assert problems(workspace) == [("v2", workspaces.FIRST)]
    # A gap between σ₂ and σ₃ that divides, and the same patch does not hold.
    other = diagonal_workspace(tmp_path / "other", monkeypatch, [4, 2.015625, 2, 1, 0.5, 0.25])
    workspaces.add_version(other, [], {workspaces.FIRST: along(1, 2, 3, 4)})
    assert problems(other) == [("v1", workspaces.FIRST)]


def test_a_rank_in_front_of_a_cluster_that_has_no_end_is_the_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfiltered: None
) -> None:
    values = [4.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert choose_rank(torch.tensor(values), rank=2).rank == 1
    workspace = diagonal_workspace(tmp_path, monkeypatch, values)
    workspaces.add_version(workspace, [], {workspaces.FIRST: along(1, 2, 3)})
    forge(workspace, "v1", lambda record: record["tensors"][0].update(protected_rank=1))
    assert problems(workspace) == []
    assert guarantees(verify(workspace.root))["v1"] == (1, 0.0, 0)


def test_a_base_of_one_direction_determines_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfiltered: None
) -> None:
    workspace = diagonal_workspace(tmp_path, monkeypatch, [4.0, 0, 0, 0, 0, 0])
    workspaces.add_version(workspace, [], {workspaces.FIRST: along(1, 2)})
    assert guarantees(verify(workspace.root))["v1"] == (1, 0.0, 1)
    workspaces.add_version(workspace, [], {workspaces.FIRST: along(0, 2)})
    assert problems(workspace) == [("v2", workspaces.FIRST)]
