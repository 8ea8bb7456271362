"""Whether a plan fits into memory, told from fake limits: the numbers, where the blocks lie, and what would do instead."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import LAYERS, make_checkpoint

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing import memory
from reviver.editing.architecture import disk_name, find_family
from reviver.editing.editors import get_editor
from reviver.editing.editors.need import WeightShape, Work
from reviver.editing.memory import MemoryPlan, ModelSize, away_note, check_memory, model_size, plan_memory
from reviver.editing.placement import WHOLE, Placement
from reviver.errors import ResourceError

GIB = 1024**3


def _work(
    editor: str, outputs: int, inputs: int, *, facts: int = 100, total: int = 100, remembered: int = 0, layers: int = 5
) -> Work:
    """Return what an editor's work on so many matrices takes, told what it is told by default."""
    chosen = get_editor(editor)
    shape = WeightShape(outputs=outputs, inputs=inputs, facts=facts, total=total, remembered=remembered)
    return Work(needs=[chosen.need(chosen.settings(), shape)] * layers)


# Llama 3 8B with the five edited matrices of its preset.
BLOCK = 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 4096 * 14336 + 2 * 4096
LARGE = ModelSize(
    values=8_030_261_248,
    blocks=dict.fromkeys(range(32), BLOCK),
    layers=(4, 5, 6, 7, 8),
    edited=[(4096, 14336)] * 5,
    stored="BF16",
    moments=True,
    work=_work("memit", 4096, 14336),
)
# Llama 3 70B in the same way.
HUGE = ModelSize(
    values=70_553_706_496,
    blocks=dict.fromkeys(range(80), 2 * 8192**2 + 2 * 1024 * 8192 + 3 * 8192 * 28672 + 2 * 8192),
    layers=(4, 5, 6, 7, 8),
    edited=[(8192, 28672)] * 5,
    stored="BF16",
    moments=True,
    work=_work("memit", 8192, 28672),
)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def _plan(
    device: torch.device,
    dtype: torch.dtype,
    *,
    host: float,
    gpu: float | None = None,
    size: ModelSize = LARGE,
    offload: str = "auto",
    processes: int = 1,
) -> MemoryPlan:
    free = {"cpu": int(host * GIB), "cuda": None if gpu is None else int(gpu * GIB)}
    return plan_memory(size, device, dtype, offload=offload, processes=processes, free=lambda device: free[device.type])


@pytest.fixture
def no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_spec", lambda name: None)


def _refused(plan: MemoryPlan) -> str:
    with pytest.raises(
        ResourceError, match=r"about \d+\.\d GiB of memory.* are needed and \d+\.\d GiB are free"
    ) as refused:
        check_memory(plan)
    return refused.value.hint or ""


def test_a_large_model_fits_into_a_gpu_of_24_gb() -> None:
    plan = _plan(GPU, torch.bfloat16, host=64, gpu=22)
    assert plan.fits and (plan.where, plan.placement, away_note(plan)) == ("cuda", WHOLE, None)
    assert 15 * GIB < plan.needed < 22 * GIB
    check_memory(plan)


@pytest.mark.parametrize(
    ("device", "dtype", "host", "gpu", "instead"),
    [
        (GPU, torch.float32, 64, 24, "--device cuda --dtype bfloat16"),
        (GPU, torch.bfloat16, 64, 8, "--device cpu --dtype float32"),
        (GPU, torch.bfloat16, 40, 8, "--device cpu --dtype bfloat16"),
        (CPU, torch.float32, 40, None, "--device cpu --dtype bfloat16"),
    ],
)
@pytest.mark.usefixtures("no_accelerate")
def test_what_does_not_fit_is_refused_with_what_would(
    device: torch.device, dtype: torch.dtype, host: float, gpu: float | None, instead: str
) -> None:
    assert _refused(_plan(device, dtype, host=host, gpu=gpu)) == f"it fits with `{instead}`"


@pytest.mark.usefixtures("no_accelerate")
def test_what_fits_nowhere_says_how_much_would_be_enough() -> None:
    plan = _plan(CPU, torch.float32, host=8)
    assert "about 31.7 GiB" in _refused(plan)
    assert plan.least is not None and plan.least < plan.needed


@pytest.mark.usefixtures("no_accelerate")
def test_the_missing_package_is_named_where_it_would_help() -> None:
    hint = _refused(_plan(GPU, torch.bfloat16, host=24, gpu=14))
    assert hint == "it fits with some blocks off the device: run `pip install 'reviver[offload]'`"
    with pytest.raises(ResourceError, match="only with the package `accelerate`"):
        _plan(GPU, torch.bfloat16, host=64, gpu=24, offload="always")


def test_the_machine_counts_for_a_gpu_too() -> None:
    plan = _plan(GPU, torch.bfloat16, host=8, gpu=80)
    assert (plan.fits, plan.where) == (False, "cpu")


def test_an_unknown_limit_refuses_nothing() -> None:
    plan = plan_memory(LARGE, CPU, torch.float32, free=lambda device: None)
    assert plan.fits and plan.placement == WHOLE
    check_memory(plan)


def test_without_second_moments_less_is_needed() -> None:
    lean = replace(LARGE, moments=False, work=Work(needs=[]))
    thin = 8 * 100 * (8 * 14336 + 4 * 4096 + 2 * 100)
    squares = 5 * 12 * 14336**2 + 16 * 14336**2
    needed = [plan_memory(size, CPU, torch.float32, free=lambda device: None).needed for size in (LARGE, lean)]
    assert needed[0] - needed[1] == squares + thin


SQUARE, WHOLE_WEIGHT = 14336**2, 4096 * 14336
THIN = 8 * 100 * (8 * 14336 + 4 * 4096 + 2 * 100)
KEYS = 10_000


@pytest.mark.parametrize(
    ("editor", "remembered", "total", "solve", "kept", "snapshot"),
    [
        # λC's factor and what it is made from; the factor stays.
        ("memit", 0, 100, 16 * SQUARE + THIN, 8 * SQUARE, 0),
        # Beside the factor ten thousand whitened keys, their factor and the copy of it that a solve makes.
        (
            "memit",
            KEYS,
            KEYS,
            8 * SQUARE + 8 * 14336 * KEYS + 16 * KEYS**2 + THIN,
            8 * SQUARE + 12 * 14336 * KEYS + 4 * KEYS**2,
            0,
        ),
        # More keys than input features: their Gram matrix and its factor, and as many keys again side by side.
        ("memit", 20_000, 20_000, 32 * SQUARE + THIN, 40 * SQUARE, 0),
        ("alphaedit", 0, 100, 8 * SQUARE + THIN, 8 * SQUARE, 0),
        ("rect", 0, 100, 16 * SQUARE + THIN, 8 * SQUARE, 0),
        ("nse", 0, 100, 16 * SQUARE + THIN, 8 * SQUARE, 0),
        ("prune", 0, 100, 16 * SQUARE + THIN, 8 * SQUARE + 4 * 100 * 18432, 4 * 100 * 18432 + 8),
        (
            "prune",
            0,
            KEYS,
            16 * SQUARE + THIN,
            8 * SQUARE + 4 * WHOLE_WEIGHT + 4 * 1024 * 18432,
            4 * WHOLE_WEIGHT + 4 * 1024 * 18432 + 8,
        ),
        ("nse", KEYS, KEYS, 16 * SQUARE + THIN, 8 * SQUARE + 4 * 14336 * KEYS, 0),
        ("nse", 20_000, 20_000, 16 * SQUARE + THIN, 20 * SQUARE, 0),
        ("ultraedit", 0, 100, THIN, 16 * 18432, 16 * 18432),
    ],
)
def test_what_an_editor_needs_for_a_weight_of_an_8b_model(
    editor: str, remembered: int, total: int, solve: int, kept: int, snapshot: int
) -> None:
    need = _work(editor, 4096, 14336, total=total, remembered=remembered).needs[0]
    assert (need.solve, need.kept, need.snapshot) == (solve, kept, snapshot)


def test_every_editor_fits_into_a_gpu_of_24_gb_or_is_refused_before_it_starts() -> None:
    """With 22 GiB free: the solves of one layer at a time fit beside the model; what waits lies in main memory."""
    for editor in ("memit", "rect", "prune", "alphaedit", "nse", "ultraedit"):
        keys = KEYS if editor in ("alphaedit", "nse") else 0
        size = replace(LARGE, work=_work(editor, 4096, 14336, total=KEYS, remembered=keys))
        plan = _plan(GPU, torch.bfloat16, host=96, gpu=22, size=size)
        assert plan.fits and plan.needed < 22 * GIB, editor
        assert not _plan(GPU, torch.bfloat16, host=12, gpu=22, size=size).fits, editor


def test_alphaedit_on_a_cpu_keeps_two_matrices_a_layer_and_decomposes_one() -> None:
    size = replace(LARGE, work=_work("alphaedit", 4096, 14336))
    plain = replace(LARGE, moments=False, work=Work(needs=[]))
    needed = [plan_memory(one, CPU, torch.float32, free=lambda device: None).needed for one in (size, plain)]
    assert needed[0] - needed[1] == 5 * (4 + 16) * SQUARE + (8 + 32) * SQUARE + THIN


@pytest.mark.parametrize(
    ("gpu", "hint"),
    [(22, "--round-size 400"), (19, "--editor ultraedit"), (16, "--device cpu --dtype bfloat16")],
)
@pytest.mark.usefixtures("no_accelerate")
def test_what_an_editor_has_no_room_for_comes_with_what_would_do(gpu: float, hint: str) -> None:
    large = replace(
        LARGE,
        work=_work("memit", 4096, 14336, facts=4000),
        instead={
            "--round-size 2000": _work("memit", 4096, 14336, facts=2000),
            "--round-size 400": _work("memit", 4096, 14336, facts=400),
            "--editor ultraedit": _work("ultraedit", 4096, 14336),
        },
    )
    assert _refused(_plan(GPU, torch.bfloat16, host=40, gpu=gpu, size=large)) == f"it fits with `{hint}`"


def test_computing_second_moments_takes_their_sums_on_the_device() -> None:
    """All layers' sums at once, in float32 on a GPU and in float64 on a CPU, and one that is on its way to the disk."""
    size = replace(LARGE, work=None)
    bare = replace(size, moments=False)
    for device, copies in ((GPU, 4 * 5), (CPU, 8 * 5 + 4)):
        with_, without = (plan_memory(one, device, torch.bfloat16, free=lambda _: None).needed for one in (size, bare))
        assert with_ - without == copies * SQUARE


def test_on_a_small_gpu_the_highest_blocks_stay_and_the_others_lie_in_main_memory() -> None:
    plan = _plan(GPU, torch.bfloat16, host=64, gpu=14)
    away = plan.placement.in_memory
    assert plan.fits and plan.where == "cuda" and not plan.placement.on_disk
    # Above the edited blocks all stay before one below does; the edited ones always do.
    assert set(away) == set(range(away[-1] + 1)) - set(LARGE.layers)
    # One block more would not have fitted beside the rest, and room is kept for the largest that comes.
    assert plan.needed <= 14 * GIB < plan.needed + 2 * BLOCK
    less = _plan(GPU, torch.bfloat16, host=64, gpu=14 - 2.1 * 2 * BLOCK / GIB)
    assert len(less.placement.in_memory) in (len(away) + 2, len(away) + 3)
    assert (
        away_note(plan)
        == f"of 32 blocks {len(away)} in main memory come to the device each time they run, which is slow"
    )


def test_what_main_memory_has_no_room_for_is_read_from_disk() -> None:
    plan = _plan(GPU, torch.bfloat16, host=128, gpu=40, size=HUGE)
    memory_, disk = plan.placement.in_memory, plan.placement.on_disk
    assert plan.fits and memory_ and disk
    assert max(disk) < min(memory_)
    block = 2 * HUGE.blocks[0]
    moments = 12 * 5 * 28672**2
    assert len(memory_) * block + moments < 128 * GIB < (len(memory_) + 2) * block + moments
    # Several processes hold a copy each.
    shared = _plan(GPU, torch.bfloat16, host=128, gpu=40, size=HUGE, processes=2)
    assert shared.fits and len(shared.placement.in_memory) in (len(memory_) // 2 - 1, len(memory_) // 2)


def test_a_cpu_reads_from_disk_what_its_memory_has_no_room_for() -> None:
    plan = _plan(CPU, torch.float32, host=40)
    assert plan.fits and plan.placement.on_disk and not plan.placement.in_memory
    note = f"of 32 blocks {len(plan.placement.on_disk)} on disk come to the device each time they run, which is slow"
    assert away_note(plan) == f"{note}; with `--dtype bfloat16` all fit on the device"


def test_all_blocks_lie_elsewhere_if_that_is_wanted() -> None:
    others = tuple(sorted(set(range(32)) - set(LARGE.layers)))
    assert _plan(GPU, torch.bfloat16, host=64, gpu=80, offload="always").placement == Placement(in_memory=others)
    assert _plan(CPU, torch.float32, host=64, offload="always").placement == Placement(on_disk=others)


def test_what_does_not_fit_with_blocks_elsewhere_is_refused_too() -> None:
    # Embeddings, head, edited blocks and solves alone are too much in float32.
    assert _refused(_plan(GPU, torch.float32, host=24, gpu=12)) == "it fits with `--device cuda --dtype bfloat16`"
    plan = _plan(GPU, torch.bfloat16, host=12, gpu=6)
    assert "use a machine with about" in _refused(plan)


def test_more_processes_need_more_of_the_machine() -> None:
    one, two = (plan_memory(LARGE, CPU, torch.bfloat16, processes=count, free=lambda device: None) for count in (1, 2))
    assert 2 * LARGE.values <= two.needed - one.needed < 2 * LARGE.values + GIB


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_size_of_a_base_is_counted_from_its_headers(family: str, tmp_path: Path) -> None:
    folder = CheckpointFolder.open(make_checkpoint(tmp_path / "base", family, shard_size="40KB"))
    known = find_family(folder.config)
    names = {layer: disk_name(known, layer, folder.tensors) for layer in (1, 2)}
    size = model_size(folder, known, names, moments=True)
    assert sorted(size.blocks) == list(range(LAYERS)) and len(set(size.blocks.values())) == 1
    assert 0 < size.values - sum(size.blocks.values()) < size.values
    block = [entry.shape for name, entry in folder.tensors.items() if f"{known.blocks}.3." in name]
    assert size.blocks[3] == sum(math.prod(shape) for shape in block)
    assert size.edited == [folder.entry(name).shape for name in names.values()]
    assert model_size(folder, known, names, edit=False).edited == ()
