"""Finished rounds on disk: what they take of it, that going on from them gives the same bits, and what is thrown away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reviver.editing.editors import DenseUpdate, Editor, FactoredUpdate, Update, get_editor
from reviver.editing.editors.prune import TotalMemory
from reviver.editing.layer import EditedLayer
from reviver.editing.resume import FinishedRounds, kept_bytes
from reviver.editing.rounds import RoundRecord
from reviver.spectral.basis import compute_basis

ROWS, COLUMNS, RANK, FACTS = 12, 40, 3, 2
HEADERS = 4096
"""More than the headers and records of a few rounds take."""


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _factored(seed: int) -> Update:
    return FactoredUpdate(_drawn(seed, ROWS, FACTS), _drawn(seed + 1000, FACTS, COLUMNS))


def _whole(seed: int) -> Update:
    return DenseUpdate(_drawn(seed, ROWS, COLUMNS))


MADE = {"factored": _factored, "whole": _whole}
EVERY_FORM = pytest.mark.parametrize("form", MADE)


def _layers(filtered: bool) -> list[EditedLayer]:
    found = []
    for layer in (1, 11):
        base_DE = _drawn(layer, ROWS, COLUMNS).float()
        basis = compute_basis(base_DE, RANK) if filtered else None
        found.append(
            EditedLayer(
                layer=layer,
                name=f"layers.{layer}.down",
                dtype="F32",
                transposed=False,
                base_DE=base_DE,
                live_DE=base_DE.clone(),
                basis=basis,
                rank=RANK if filtered else None,
            )
        )
    return found


def _record(number: int) -> RoundRecord:
    return RoundRecord(facts=(f"f{number}",), components=(), mean_loss=0.5, mean_steps=2.0, norms={})


def _run(
    layers: Sequence[EditedLayer],
    make: Callable[[int], Update],
    numbers: Sequence[int],
    finished: FinishedRounds | None,
    sizes: list[int] | None = None,
) -> None:
    for number in numbers:
        for edited in layers:
            edited.add(make(100 * edited.layer + number))
            if isinstance(edited.memory, TotalMemory):
                edited.memory = edited.memory.plus(make(7 + number))
        if finished is not None:
            finished.save(number, _record(number), layers)
            if sizes is not None:
                sizes.append(sum(path.stat().st_size for path in finished.folder.iterdir()))
        for edited in layers:
            edited.fresh.clear()


def _same(ours: Sequence[EditedLayer], wanted: Sequence[EditedLayer]) -> None:
    for own, other in zip(ours, wanted, strict=True):
        assert torch.equal(own.live_DE, other.live_DE)
        assert torch.equal(own.total.dense(), other.total.dense()) and own.total.rank == other.total.rank
        assert own.unfiltered.norm() == other.unfiltered.norm()
        assert own.total.running_norm() == other.total.running_norm()


def _rounds(folder: Path, editor: Editor | None = None) -> FinishedRounds:
    return FinishedRounds(folder / "rounds", "job", editor or get_editor("memit"))


@EVERY_FORM
@pytest.mark.parametrize("filtered", [True, False])
def test_going_on_gives_the_bits_of_going_through(form: str, filtered: bool, tmp_path: Path) -> None:
    through, stopped, resumed = (_layers(filtered) for _ in range(3))
    _run(through, MADE[form], range(1, 13), None)
    _run(stopped, MADE[form], range(1, 8), _rounds(tmp_path))
    assert [record.facts for record in _rounds(tmp_path).restore(resumed)] == [(f"f{n}",) for n in range(1, 8)]
    _same(resumed, stopped)
    _run(resumed, MADE[form], range(8, 13), _rounds(tmp_path))
    _same(resumed, through)
    # And once more from there: nothing that was read from a file was changed by going on.
    again = _layers(filtered)
    assert len(_rounds(tmp_path).restore(again)) == 12
    _same(again, through)


def test_a_round_of_whole_matrices_takes_no_more_of_the_disk_than_the_one_before(tmp_path: Path) -> None:
    sizes: list[int] = []
    _run(_layers(True), _whole, range(1, 9), _rounds(tmp_path), sizes)
    one = 2 * (12 * ROWS * COLUMNS + 8 * RANK * (ROWS + COLUMNS))
    assert one <= sizes[-1] < one + 8 * HEADERS
    # Records and headers are all that comes with a round.
    assert sizes[-1] - sizes[0] < 7 * HEADERS
    planned = kept_bytes((ROWS, COLUMNS), components=16, rank=RANK, whole=True, keys=0, snapshot=0)
    # The plan counts two of each of the two tensors: the next is written before the last is removed.
    assert 2 * planned == 2 * one


def test_factors_take_their_own_size(tmp_path: Path) -> None:
    sizes: list[int] = []
    _run(_layers(True), _factored, range(1, 9), _rounds(tmp_path), sizes)
    factors = 2 * 4 * 8 * FACTS * (ROWS + COLUMNS)
    state = 2 * 8 * RANK * (ROWS + COLUMNS)
    assert factors + state <= sizes[-1] < factors + state + 8 * HEADERS
    planned = kept_bytes((ROWS, COLUMNS), components=8 * FACTS, rank=RANK, whole=False, keys=0, snapshot=0)
    assert 2 * planned == factors + 2 * state


def test_what_an_editor_sums_up_is_kept_once(tmp_path: Path) -> None:
    editor = get_editor("prune")
    layers, resumed = _layers(False), _layers(False)
    for edited in layers:
        edited.memory = TotalMemory.start(edited.base_DE)
    _run(layers, _factored, range(1, 9), _rounds(tmp_path, editor))
    assert len(list((tmp_path / "rounds").glob("*.state.safetensors"))) == 1
    assert len(_rounds(tmp_path, editor).restore(resumed)) == 8
    for own, other in zip(resumed, layers, strict=True):
        assert isinstance(own.memory, TotalMemory) and isinstance(other.memory, TotalMemory)
        kept, wanted = own.memory.tensors(), other.memory.tensors()
        assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], wanted[name]) for name in kept)


@EVERY_FORM
def test_a_round_whose_record_is_missing_is_none_and_the_one_before_stands(form: str, tmp_path: Path) -> None:
    before, resumed = _layers(True), _layers(True)
    _run(before, MADE[form], range(1, 4), _rounds(tmp_path))
    state = tmp_path / "rounds" / "000003.state.safetensors"
    kept = state.read_bytes()
    after = _layers(True)
    _rounds(tmp_path).restore(after)
    _run(after, MADE[form], [4], _rounds(tmp_path))
    # Killed between the files of round 4 and its record, and so before the state of round 3 went.
    (tmp_path / "rounds" / "000004.json").unlink()
    state.write_bytes(kept)
    assert len(_rounds(tmp_path).restore(resumed)) == 3
    _same(resumed, before)
    assert not list((tmp_path / "rounds").glob("000004*"))


def test_without_the_state_of_a_round_all_is_solved_again(tmp_path: Path) -> None:
    _run(_layers(True), _whole, range(1, 4), _rounds(tmp_path))
    (tmp_path / "rounds" / "000003.state.safetensors").write_bytes(b"damaged")
    resumed = _layers(True)
    assert _rounds(tmp_path).restore(resumed) == []
    _same(resumed, _layers(True))
    assert not list((tmp_path / "rounds").iterdir())


@EVERY_FORM
@pytest.mark.parametrize("filtered", [True, False])
def test_the_norm_before_the_filter_is_that_of_the_sum_asked_for(form: str, filtered: bool) -> None:
    layers = _layers(filtered)
    _run(layers, MADE[form], range(1, 6), None)
    for edited in layers:
        asked = sum(MADE[form](100 * edited.layer + number).dense() for number in range(1, 6))
        assert isinstance(asked, Tensor)
        assert edited.unfiltered.norm() == pytest.approx(float(torch.linalg.matrix_norm(asked)), rel=1e-6)
        assert filtered == (edited.total.norm() < 0.99 * edited.unfiltered.norm())


def test_nothing_of_a_whole_matrix_waits_on_the_device_for_the_end_of_its_round() -> None:
    edited = _layers(True)[0]
    edited.add(_whole(1))
    assert edited.fresh == [] and edited.whole
    thin = 8 * RANK * (ROWS + COLUMNS)
    held = [values for values in edited.unfiltered.tensors().values() if values.device.type == "cpu"]
    assert sum(values.nbytes for values in held) == thin
