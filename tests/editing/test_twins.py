"""Work at once: the same results, in the items' order, on shared weights, and an end when one piece fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import open_tiny

from reviver.editing.model import EditableModel
from reviver.editing.placement import Placement
from reviver.editing.targets import TargetSettings, find_targets
from reviver.editing.twins import run_at_once, twin, work_at_once
from reviver.facts.fact import Fact
from reviver.progress import NullProgress

SETTINGS = TargetSettings(steps=6, learning_rate=0.3, clamp=0.9, weight_decay=0.5, kl=0.0625, token_budget=16 * 48)
FACTS = [
    Fact(
        id=str(number),
        prompt="The capital of {} is" + " near the river" * (number % 3),
        subject=name,
        target_new="Calmar",
    )
    for number, name in enumerate(("Orvania", "Tessel", "Brundia", "Ilva", "Mara Venn", "Oskar Lund"))
]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2, "the number of threads was not put back"
    torch.set_num_threads(before)


def _ignored(_amount: float) -> None:
    pass


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gptj", "gpt_neox", "opt", "phi3", "qwen3"])
def test_targets_are_those_of_one_thread(family: str, two_threads: None, tmp_path: Path) -> None:
    model = open_tiny(tmp_path / "base", family)
    torch.set_num_threads(1)
    wanted = find_targets(model, FACTS, ("The cello. ",), SETTINGS)
    torch.set_num_threads(2)
    ran: set[int] = set()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda _module, _arguments: ran.add(threading.get_ident())
    )
    try:
        found = find_targets(model, FACTS, ("The cello. ",), SETTINGS)
    finally:
        handle.remove()
    assert len(ran - {threading.get_ident()}) == 2, "both threads searched"
    torch.testing.assert_close(found.target_NO, wanted.target_NO, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss_N, wanted.loss_N, rtol=1e-4, atol=1e-5)
    assert found.steps_N.tolist() == wanted.steps_N.tolist()


def test_progress_reaches_the_number_of_facts(tiny: EditableModel, two_threads: None) -> None:
    told: list[float] = []

    class Task:
        def advance(self, amount: float = 1) -> None:
            told.append(amount)

    class Watched(NullProgress):
        def task(self, name: str, *, total: float | None = None, unit: str = "") -> object:  # type: ignore[override]
            return nullcontext(Task())

    find_targets(tiny, FACTS, (), SETTINGS, progress=Watched())  # type: ignore[arg-type]
    assert sum(told) == len(FACTS)


def test_results_keep_the_order_of_the_items_and_twins_never_meet(tiny: EditableModel, two_threads: None) -> None:
    busy: set[int] = set()
    lock = threading.Lock()
    meet = threading.Barrier(2)

    def work(model: EditableModel, item: int, _advance: Callable[[float], None]) -> int:
        with lock:
            assert id(model) not in busy
            busy.add(id(model))
        if item < 2:
            meet.wait(timeout=30)  # Both pieces run at the same time, or this breaks.
        with lock:
            busy.discard(id(model))
        return item * item

    assert run_at_once(tiny, work, range(7), _ignored) == [item * item for item in range(7)]


def test_what_is_patched_on_a_twin_is_not_on_the_model(tiny: EditableModel) -> None:
    other = twin(tiny)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted = tiny.network(ids).logits
        torch.testing.assert_close(other.network(ids).logits, wanted, rtol=0, atol=0)
        other.blocks[-1].forward = lambda states, *_, **__: states * 0
        torch.testing.assert_close(tiny.network(ids).logits, wanted, rtol=0, atol=0)
        assert not torch.allclose(other.network(ids).logits, wanted)
    assert [id(one) for one in other.network.parameters()] == [id(one) for one in tiny.network.parameters()]


def test_the_first_failure_ends_all(tiny: EditableModel, two_threads: None) -> None:
    failed = threading.Event()
    begun: list[int] = []

    def work(_model: EditableModel, item: int, advance: Callable[[float], None]) -> None:
        begun.append(item)
        if item == 1:
            failed.set()
            raise ValueError("the second")
        assert failed.wait(timeout=30)
        for _ in range(10_000):
            advance(0)
            threading.Event().wait(0.005)
        raise AssertionError("was not stopped")

    with pytest.raises(ValueError, match="the second"):
        run_at_once(tiny, work, range(50), _ignored)
    assert len(begun) < 5, "nothing more was begun"


def test_an_interruption_of_the_caller_stops_the_threads(
    tiny: EditableModel, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    running = threading.Event()

    def work(_model: EditableModel, _item: int, advance: Callable[[float], None]) -> None:
        try:
            while True:
                advance(0)
                running.set()
        finally:
            stopped.set()

    def interrupted(*_: object, **__: object) -> object:
        assert running.wait(timeout=30)
        raise KeyboardInterrupt

    monkeypatch.setattr("reviver.editing.twins.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_at_once(tiny, work, range(4), _ignored)
    assert stopped.is_set()


def test_one_at_a_time_where_there_is_nothing_to_share(tiny: EditableModel, two_threads: None) -> None:
    assert work_at_once(tiny) == 2
    assert work_at_once(replace(tiny, placement=Placement(in_memory=(0,)))) == 1
    assert work_at_once(replace(tiny, device=torch.device("meta"))) == 1
    torch.set_num_threads(1)
    assert work_at_once(tiny) == 1
    torch.set_num_threads(2)
