"""Whether a plan fits into memory, told from fake limits: the numbers, and what would do instead."""

from __future__ import annotations

import math

import pytest
import torch

from reviver.errors import ResourceError
from reviver.verbs.memory import MemoryPlan, ModelSize, check_memory, plan_memory

GIB = 1024**3
# Llama 3 8B with the five edited matrices of its preset.
LARGE = ModelSize(values=8_030_261_248, edited=[(4096, 14336)] * 5, stored="BF16", moments=True)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def _plan(device: torch.device, dtype: torch.dtype, *, host: float, gpu: float | None = None) -> MemoryPlan:
    free = {"cpu": int(host * GIB), "cuda": None if gpu is None else int(gpu * GIB)}
    return plan_memory(LARGE, device, dtype, free=lambda device: free[device.type])


def test_a_large_model_fits_into_a_gpu_of_24_gb() -> None:
    plan = _plan(GPU, torch.bfloat16, host=64, gpu=22)
    assert plan.fits and plan.where == "cuda"
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
def test_what_does_not_fit_is_refused_with_what_would(
    device: torch.device, dtype: torch.dtype, host: float, gpu: float | None, instead: str
) -> None:
    plan = _plan(device, dtype, host=host, gpu=gpu)
    with pytest.raises(
        ResourceError, match=r"about \d+\.\d GiB of memory.* are needed and \d+\.\d GiB are free"
    ) as refused:
        check_memory(plan)
    assert refused.value.hint == f"it fits with `{instead}`"


def test_what_fits_nowhere_says_how_much_would_be_enough() -> None:
    plan = _plan(CPU, torch.float32, host=16)
    with pytest.raises(ResourceError, match="memory") as refused:
        check_memory(plan)
    assert "about 30" in (refused.value.hint or "")
    assert plan.least is not None and plan.least < plan.needed


def test_the_machine_counts_for_a_gpu_too() -> None:
    plan = _plan(GPU, torch.bfloat16, host=8, gpu=80)
    assert (plan.fits, plan.where) == (False, "cpu")


def test_an_unknown_limit_refuses_nothing() -> None:
    plan = plan_memory(LARGE, CPU, torch.float32, free=lambda device: None)
    assert plan.fits
    check_memory(plan)


def test_without_second_moments_less_is_needed() -> None:
    lean = ModelSize(values=LARGE.values, edited=LARGE.edited, stored="BF16", moments=False)
    squares = 5 * 12 * 14336**2 + 8 * 14336**2
    needed = [plan_memory(size, CPU, torch.float32, free=lambda device: None).needed for size in (LARGE, lean)]
    assert math.isclose(needed[0] - needed[1], squares)
