"""What UltraEdit reads: the same in however many passes it comes, and no pass keeps more than its share for the backward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import open_tiny
from torch import Tensor

from reviver.editing import gradients
from reviver.editing.gradients import AnswerSignals, answer_signals
from reviver.editing.model import EditableModel
from reviver.editing.targets import token_bytes
from reviver.editing.tokens import make_batch
from reviver.facts.fact import Fact

SUBJECTS = ("Mara Venn", "Oskar Lund", "Ilva", "Orvania")
FACTS = [
    Fact(id=str(number), prompt=prompt, subject=SUBJECTS[number % 4], target_new=target)
    for number, (prompt, target) in enumerate(
        [
            ("The home of {} is", "Tessel"),
            ("{} plays the", "river Ilva"),
            ("When spring comes, the river that is called {} rises near", "Brundia"),
            ("{} is", "in the capital of Orvania"),
        ]
        * 3
    )
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    return open_tiny(tmp_path_factory.mktemp("gradients") / "base", "llama")


class Passes:
    """The passes that were made: the padded tokens of each, and the bytes that it kept for the backward pass."""

    def __init__(self, model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []
        self.kept: list[int] = []
        own = {parameter.untyped_storage().data_ptr() for parameter in model.network.parameters()}
        read, batch = gradients._read, make_batch

        def counted(*arguments: Any) -> Any:
            seen: dict[int, int] = {}

            def keep(values: Tensor) -> Tensor:
                storage = values.untyped_storage()
                if storage.data_ptr() not in own:
                    seen[storage.data_ptr()] = storage.nbytes()
                return values

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
                found = read(*arguments)
            self.kept.append(sum(seen.values()))
            return found

        def batched(*arguments: Any, **named: Any) -> Any:
            made = batch(*arguments, **named)
            self.tokens.append(made.ids_BT.numel())
            return made

        monkeypatch.setattr(gradients, "_read", counted)
        monkeypatch.setattr(gradients, "make_batch", batched)


def _same(ours: AnswerSignals, wanted: AnswerSignals) -> None:
    assert ours.fact_N == wanted.fact_N
    assert ours.loss == pytest.approx(wanted.loss, rel=1e-5)
    for layer in wanted.keys_IN:
        for own, other in ((ours.keys_IN, wanted.keys_IN), (ours.gradient_ON, wanted.gradient_ON)):
            assert torch.allclose(
                own[layer], other[layer], rtol=1e-3, atol=1e-6 * float(other[layer].abs().max()) + 1e-9
            )


def test_many_passes_give_what_one_gives(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        whole = Passes(model, patched)
        wanted = answer_signals(model, FACTS, token_budget=10**6)
    parted = Passes(model, monkeypatch)
    ours = answer_signals(model, FACTS, token_budget=16 * 40)
    assert len(whole.tokens) == 1 < len(parted.tokens) // 2
    longest = max(parted.tokens)
    assert longest <= 40
    _same(ours, wanted)
    # What is kept grows with the tokens of a pass.
    assert max(parted.kept) < 1.5 * longest / whole.tokens[0] * whole.kept[0]


def test_a_pass_keeps_no_more_than_is_estimated_of_its_tokens(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks above the lowest edited one count, not only those above the last."""
    passes = Passes(model, monkeypatch)
    answer_signals(model, FACTS, token_budget=16 * 40)
    lowest = replace(model, layers=model.layers[:1])
    assert len(model.layers) > 1 and token_bytes(lowest) > token_bytes(model)
    for tokens, kept in zip(passes.tokens, passes.kept, strict=True):
        assert kept <= tokens * token_bytes(lowest)


def test_a_device_with_little_room_gets_fewer_tokens(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def few(given: EditableModel, budget: int) -> int:
        asked.append(tuple(given.layers))
        return 60

    wanted = answer_signals(model, FACTS)
    monkeypatch.setattr(gradients, "step_tokens", few)
    passes = Passes(model, monkeypatch)
    _same(answer_signals(model, FACTS), wanted)
    assert asked == [model.layers[:1]]
    assert 39 <= max(passes.tokens) <= 60
