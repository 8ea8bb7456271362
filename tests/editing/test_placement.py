"""Blocks that do not lie on the device: the same bits, one block there at a time, and nothing left behind."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGURATIONS, LAYERS, make_checkpoint
from torch import Tensor

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing import placement, upper
from reviver.editing.architecture import disk_name, find_family
from reviver.editing.gradients import answer_signals
from reviver.editing.keys import SubjectStates
from reviver.editing.model import EditableModel, load_model
from reviver.editing.placement import WHOLE, Placement
from reviver.editing.prefixes import write_prefixes
from reviver.editing.targets import TargetSettings, coming_bytes, find_targets, token_bytes
from reviver.facts.fact import Fact

FACTS = (
    Fact(id="a", prompt="The capital of {} is", subject="Orvania", target_new="Calmar"),
    Fact(id="b", prompt="{} plays the", subject="Mara Venn", target_new="river Ilva"),
)
PREFIXES = ("The cello. ",)
SETTINGS = TargetSettings(steps=4, learning_rate=0.3, clamp=0.9, weight_decay=0.5, kl=0.0625)
ON_DISK = Placement(on_disk=(0, 2, 3))
IN_MEMORY = Placement(in_memory=(0, 2, 3))


def _load(folder: Path, where: Placement, *, edited: int = 1) -> EditableModel:
    opened = CheckpointFolder.open(folder)
    family = find_family(opened.config)
    names = {edited: disk_name(family, edited, opened.tensors)}
    return load_model(
        folder, family, (edited,), names, device=torch.device("cpu"), dtype=torch.float32, placement=where
    )


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let accelerate take the CPU for a device beside main memory: it knows them apart by their type alone."""
    monkeypatch.setattr(placement, "device_name", lambda device: device)


def _found(model: EditableModel) -> list[Tensor]:
    """Return all that an edit reads from a model."""
    targets = find_targets(model, FACTS, PREFIXES, SETTINGS)
    states = SubjectStates(model, FACTS, PREFIXES)
    signals = answer_signals(model, FACTS)
    return [
        targets.target_NO,
        targets.loss_N,
        *states.measure(1),
        signals.keys_IN[1],
        signals.gradient_ON[1],
    ]


def _on_meta(model: EditableModel) -> set[int]:
    return {index for index, block in enumerate(model.blocks) if all(one.is_meta for one in block.parameters())}


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_blocks_on_disk_give_the_same_bits(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "base", family)
    whole, parted = _load(folder, WHOLE), _load(folder, ON_DISK)
    assert _on_meta(parted) == {0, 2, 3} and not _on_meta(whole)
    assert write_prefixes(parted, count=2, tokens=4, seed=0) == write_prefixes(whole, count=2, tokens=4, seed=0)
    for here, there in zip(_found(whole), _found(parted), strict=True):
        assert torch.isfinite(here).all() and torch.equal(here, there)
    # What came for a run went again, wherever the run was left.
    assert _on_meta(parted) == {0, 2, 3}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.usefixtures("other_device")
def test_blocks_in_main_memory_give_the_same_bits(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "base", family, dtype=torch.bfloat16)
    whole, parted = _load(folder, WHOLE), _load(folder, IN_MEMORY)
    assert _on_meta(parted) == {0, 2, 3}
    for here, there in zip(_found(whole), _found(parted), strict=True):
        assert torch.equal(here, there)
    assert _on_meta(parted) == {0, 2, 3}


class _Arrivals:
    """The bytes of offloaded weights that are alive at once, counted from copies whose end is noticed."""

    def __init__(self, model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive = self.most = self.came = 0
        (loader,) = {
            id(held): held
            for module in model.network.modules()
            if (held := getattr(getattr(getattr(module, "_hf_hook", None), "weights_map", None), "dataset", None))
        }.values()
        fetch = type(loader).__getitem__

        def fetched(loader: Any, name: str) -> Tensor:
            copy: Tensor = fetch(loader, name).clone()
            size = copy.untyped_storage().nbytes()
            self.came += size
            self.alive += size
            self.most = max(self.most, self.alive)
            weakref.finalize(copy.untyped_storage(), self._gone, size)
            return copy

        monkeypatch.setattr(type(loader), "__getitem__", fetched)

    def _gone(self, size: int) -> None:
        self.alive -= size


@pytest.mark.usefixtures("other_device")
def test_in_the_search_one_block_is_there_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "base", "llama")
    away = Placement(in_memory=(1, 2, 3))
    model = _load(folder, away, edited=0)
    block = coming_bytes(model)
    assert block == sum(4 * one.numel() for one in model.blocks[2].parameters())
    arrivals = _Arrivals(model, monkeypatch)
    find_targets(model, FACTS, PREFIXES, SETTINGS)
    assert arrivals.came > 20 * block
    assert arrivals.most <= block and arrivals.alive == 0

    # Without a second run autograd keeps what all blocks above the edited one computed with.
    @contextmanager
    def not_at_all(model: EditableModel, first: int) -> Iterator[None]:
        with nullcontext():
            yield

    monkeypatch.setattr(upper, "recomputing", not_at_all)
    arrivals.most = 0
    find_targets(model, FACTS, PREFIXES, SETTINGS)
    assert arrivals.most > 2.5 * block


def test_a_tensor_of_a_block_on_disk_can_be_replaced(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "base", "llama")
    whole, parted = _load(folder, WHOLE), _load(folder, ON_DISK)
    tensors = CheckpointFolder.open(folder).tensors
    name = next(name for name in tensors if "layers.2.self_attn.o_proj" in name)
    before = _found(whole)[0]
    for model in (whole, parted):
        model.put_tensor(name, torch.full(tensors[name].shape, 0.25, dtype=torch.bfloat16))
    here, there = _found(whole)[0], _found(parted)[0]
    assert torch.equal(here, there) and not torch.equal(here, before)
    assert _on_meta(parted) == {0, 2, 3}


def test_a_device_has_a_number_in_the_map(tmp_path: Path) -> None:
    model = _load(make_checkpoint(tmp_path / "base", "gpt2"), WHOLE)
    where = Placement(in_memory=(0,), on_disk=(2,))
    mapped = placement.device_map(model.network, model.blocks, where, torch.device("cuda:1"))
    assert mapped.pop("transformer.h.0") == "cpu" and mapped.pop("transformer.h.2") == "disk"
    assert set(mapped.values()) == {"cuda:1"}
    assert {"transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head", "transformer.h.3"} <= mapped.keys()
    covered = (*mapped, "transformer.h.0", "transformer.h.2")
    assert all(any(f"{name}.".startswith(f"{part}.") for part in covered) for name in model.network.state_dict())


def test_a_step_may_carry_more_tokens_where_blocks_run_again(tmp_path: Path) -> None:
    model = _load(make_checkpoint(tmp_path / "base", "llama"), WHOLE, edited=0)
    needed = [token_bytes(replace(model, placement=Placement(on_disk=away))) for away in ((), (3,), (2, 3), (1, 2, 3))]
    # One block that runs again needs what it needed; of several, only one does at a time.
    assert needed[0] == needed[1] - 4 * model.outer_width(0)
    assert needed[1] > needed[2] > needed[3] and LAYERS == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_blocks_off_a_gpu_give_the_same_targets(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "base", "llama")
    opened = CheckpointFolder.open(folder)
    family = find_family(opened.config)
    names = {1: disk_name(family, 1, opened.tensors)}
    found = []
    for where in (WHOLE, Placement(in_memory=(0, 3), on_disk=(2,))):
        model = load_model(
            folder, family, (1,), names, device=torch.device("cuda"), dtype=torch.float32, placement=where
        )
        found.append(_found(model))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there)
