"""diff: facts, tensors and files between any two versions, against sums made another way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workspaces
from chains import QUICK, SETTINGS, apply_facts, known_family

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.errors import BaseMismatchError
from reviver.history.chain import chain_deltas
from reviver.history.comparison import SignedDelta
from reviver.history.summation import norm_of_sum
from reviver.history.workspace import Workspace
from reviver.verbs.diff import diff
from reviver.verbs.revert import revert
from reviver.verbs.squash import squash

Check = Callable[..., dict[str, Any]]


def values(workspace: Workspace, version: str, tensor: str) -> np.ndarray:
    """Return a tensor of a version from the bytes of its checkpoint."""
    folder = workspace.checkpoint(version) if version != "v0" else Path(workspace.pin().folder)
    return workspaces.values_of(CheckpointFolder.open(folder).read_tensor(tensor))


def total(deltas: Sequence[Delta]) -> np.ndarray:
    return sum((workspaces.product(delta) for delta in deltas), np.zeros((workspaces.ROWS, workspaces.COLUMNS)))


def test_from_the_base(chained: Workspace, check: Check) -> None:
    fields = check(
        chained,
        "diff",
        "base",
        "v1",
        human=[
            "v0..v1: 2 facts (2 added), 1 tensor, 1 of 3 shards\n",
            "+ Rome lies in → Norway (v1)",
            "~ model-00002-of-00003.safetensors  ",
        ],
        quiet="v0..v1: 2 facts (2 added), 1 tensor, 1 of 3 shards",
    )
    assert [fact["subject"] for fact in fields["facts_added"]] == ["Rome", "Oslo"]
    (tensor,) = fields["tensors"]
    manifest = chained.version("v1").manifest.tensors[0]
    for key in ("norm", "relative_norm", "captured_fraction", "shard"):
        assert tensor[key] == getattr(manifest, key)
    assert (tensor["before_sha256"], tensor["after_sha256"]) == (manifest.base_sha256, manifest.result_sha256)


def test_between_neighbours(chained: Workspace, check: Check) -> None:
    fields = check(
        chained,
        "diff",
        "v1",
        "v2",
        human=["v1..v2: 2 facts (1 added, 1 changed), 2 tensors, 2 of 3 shards", "~ Rome lies in: Norway → Chile (v2)"],
        quiet="v1..v2: 2 facts (1 added, 1 changed), 2 tensors, 2 of 3 shards",
    )
    assert fields["facts_changed"] == [
        {"subject": "Rome", "prompt": "{} lies in", "before": "Norway", "after": "Chile", "version": "v2"}
    ]
    before, after = chained.version("v1"), chained.version("v2")
    paths = [file["path"] for file in fields["files"]]
    assert paths == ["model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    old = {file.path: file.sha256 for file in before.manifest.files}
    new = {file.path: file.sha256 for file in after.manifest.files}
    text = f"{old[paths[0]][:8]}..{new[paths[0]][:8]}"
    check(chained, "diff", "v1", "v2", human=[text], quiet=fields["summary"])


def test_backwards_is_the_mirror(chained: Workspace) -> None:
    there, back = diff(chained.root, "v1", "v2"), diff(chained.root, "v2", "v1")
    assert [change.subject for change in back.facts_dropped] == [change.subject for change in there.facts_added]
    assert (back.facts_changed[0].before, back.facts_changed[0].after) == ("Chile", "Norway")
    assert [(tensor.norm, tensor.captured_fraction) for tensor in back.tensors] == [
        (tensor.norm, tensor.captured_fraction) for tensor in there.tensors
    ]
    assert [(file.before_sha256, file.after_sha256) for file in back.files] == [
        (file.after_sha256, file.before_sha256) for file in there.files
    ]


@pytest.mark.parametrize(("a", "b"), [("v0", "v2"), ("v2", "v3"), ("v3", "v2"), ("v2", "v0"), ("v0", "v4")])
def test_distant_versions_and_branches_are_measured_from_the_bytes(chained: Workspace, a: str, b: str) -> None:
    workspaces.add_version(chained, [], {workspaces.FIRST: workspaces.dense(9)}, parent="v2")
    pin = chained.pin()
    report = diff(chained.root, a, b)
    deltas = {name: chain_deltas(chained.chain(name), pin) for name in (a, b)}
    for tensor in report.tensors:
        matrix = total(deltas[b].get(tensor.name, [])) - total(deltas[a].get(tensor.name, []))
        norm = np.linalg.norm(matrix)
        assert tensor.norm == pytest.approx(norm, rel=1e-6)
        assert tensor.relative_norm == pytest.approx(
            norm / np.linalg.norm(values(chained, "v0", tensor.name)), rel=1e-6
        )
        step = values(chained, b, tensor.name) - values(chained, a, tensor.name)
        assert tensor.captured_fraction == pytest.approx(float(step @ matrix.ravel()) / norm**2, rel=1e-6)
    changed = [
        name for name in workspaces.NAMES if not np.array_equal(values(chained, a, name), values(chained, b, name))
    ]
    assert [tensor.name for tensor in report.tensors] == changed


def test_branches_tell_what_each_side_has(chained: Workspace) -> None:
    report = diff(chained.root, "v2", "v3")
    assert [(one.subject, one.after) for one in report.facts_added] == [("Bern", "Peru")]
    assert [(one.subject, one.before, one.after) for one in report.facts_changed] == [("Rome", "Chile", "Norway")]
    assert [(one.subject, one.before) for one in report.facts_dropped] == [("Lima", "Spain")]


def test_nothing_differs(chained: Workspace, check: Check) -> None:
    fields = check(
        chained, "diff", "v2", "v2", "--exit-code", human=["v2..v2: no difference"], quiet="v2..v2: no difference"
    )
    assert fields["same"] is True


def test_versions_of_the_same_bytes_made_in_different_ways(workspace: Workspace, check: Check) -> None:
    known_family(workspace)
    for number, subject in enumerate(("Rome", "Lima", "Bern"), start=1):
        apply_facts(workspace, [workspaces.make_fact(subject, "Peru")], seed=number)
    revert(workspace.root, "v2", settings=SETTINGS, choice=QUICK)
    revert(workspace.root, "v4", settings=SETTINGS, choice=QUICK)
    squash(workspace.root, "v0..v3", settings=SETTINGS, choice=QUICK)
    for other in ("v5", "v6"):
        told = f"v3..{other}: no difference"
        fields = check(workspace, "diff", "v3", other, "--exit-code", human=[told], quiet=told)
        assert (fields["same"], fields["tensors"]) == (True, [])
    assert not diff(workspace.root, "v3", "v4").same


def test_a_range_from_the_base(chained: Workspace, check: Check) -> None:
    summary = diff(chained.root, "base", "v1").summary
    check(chained, "diff", "..v1", human=[summary], quiet=summary)


def test_the_exit_code_tells_on_request(chained: Workspace, check: Check) -> None:
    summary = "v1..v3: 1 fact (1 added), 1 tensor, 1 of 3 shards"
    for named in (("v1",), ("v1..v3",), ("v1..",), ("v1..head",)):
        check(chained, "diff", *named, human=[summary], quiet=summary)
    check(chained, "diff", "v1", "head", "--exit-code", human=[summary], quiet=summary, code=3)


def test_stat_reads_no_weights(chained: Workspace, check: Check) -> None:
    import shutil

    for name in ("v1", "v2", "v3"):
        (chained.edits / name / "patch.safetensors").unlink()
    shutil.rmtree(chained.pin().folder)
    fields = check(
        chained,
        "diff",
        "v2",
        "v3",
        "--stat",
        human=["v2..v3: 3 facts (1 added, 1 changed, 1 dropped), 2 tensors, 2 of 3 shards"],
        quiet="v2..v3: 3 facts (1 added, 1 changed, 1 dropped), 2 tensors, 2 of 3 shards",
    )
    assert fields["tensors"][0]["norm"] is None


def test_without_the_base_what_the_patches_say_is_told(chained: Workspace) -> None:
    import shutil

    shutil.rmtree(chained.pin().folder)
    tensors = diff(chained.root, "v2", "v3").tensors
    assert tensors[0].norm is not None and tensors[0].captured_fraction is None
    assert tensors[1].captured_fraction is not None, "one patch apart, its manifest knows"


def test_a_clone_without_a_pin_can_be_compared(chained: Workspace) -> None:
    chained.base_file.unlink()
    assert diff(chained.root, "v1", "v2").summary.startswith("v1..v2: 2 facts")


def test_another_base_is_refused(chained: Workspace, tmp_path: Path) -> None:
    import shutil

    other = workspaces.make_workspace(tmp_path / "other", seed=7)
    shutil.copytree(chained.edits / "v1", other.edits / "v1")
    with pytest.raises(BaseMismatchError):
        diff(other.root, "base", "v1")


@pytest.mark.parametrize("ranks", [(1, 2), (3, 4), (2, 2, 2, 2)])
def test_the_norm_of_a_sum_is_that_of_the_matrix(ranks: tuple[int, ...]) -> None:
    deltas = [workspaces.low_rank(seed, rank=rank) for seed, rank in enumerate(ranks)]
    signs = [1, -1, 1, -1][: len(deltas)]
    matrix = sum(sign * workspaces.product(delta) for sign, delta in zip(signs, deltas, strict=True))
    terms = [SignedDelta(sign, delta) for sign, delta in zip(signs, deltas, strict=True)]
    assert norm_of_sum(terms) == pytest.approx(float(np.linalg.norm(matrix)), rel=1e-12)
    assert norm_of_sum([SignedDelta(1, deltas[0]), SignedDelta(-1, deltas[0])]) == pytest.approx(0, abs=1e-12)
    assert norm_of_sum([]) == 0
