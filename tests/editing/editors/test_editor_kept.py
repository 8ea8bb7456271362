"""What solves keep between rounds: where a device has no room it lies in host memory, and gives the same bits from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest
import torch
from textbook import drawn, spectrum_moment
from torch import Tensor

from reviver.editing.editors import FactoredUpdate, LayerProblem, SecondMoment, get_editor, kept, solve
from reviver.editing.editors.memory import KeyMemory

O, I, N = 10, 30, 4  # noqa: E741 The letters are the axes' names everywhere in this package.
EDITORS: dict[str, dict[str, object]] = {
    "memit": {"memory": "keys"},
    "rect": {"memory": "keys"},
    "alphaedit": {"share": 0.6, "l2": 0.1},
}
# Seven rounds of keys lie side by side; from the eighth on there are more of them than input features.
ROUNDS = 10


class Host:
    """A stand-in for a device without room: whatever is to stay goes to the host, which says what it holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: dict[int, Tensor] = {}
        for module in (kept, solve):
            monkeypatch.setattr(module, "stays", lambda device, size: False)
        monkeypatch.setattr(kept, "to_host", self.take)

    def take(self, values: Tensor) -> Tensor:
        if id(values) in self.held:
            return values
        copy = values.clone()
        self.held[id(copy)] = copy
        return copy


def _tensors(found: object, seen: set[int]) -> Iterator[Tensor]:
    if id(found) in seen:
        return
    seen.add(id(found))
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        for each in found.values():
            yield from _tensors(each, seen)
    elif isinstance(found, tuple | list):
        for each in found:
            yield from _tensors(each, seen)
    elif is_dataclass(found):
        for field in fields(found):
            yield from _tensors(getattr(found, field.name), seen)
    elif hasattr(found, "__dict__"):
        yield from _tensors(vars(found), seen)


def _updates(name: str, moment: SecondMoment, *, rounds: int = ROUNDS) -> tuple[list[Tensor], KeyMemory]:
    editor = get_editor(name)
    settings = editor.settings(EDITORS[name])
    memory = editor.begin(settings, O, I)
    found = []
    for number in range(rounds):
        problem = LayerProblem(
            keys_IN=drawn(2 * number, I, N).float(),
            residual_ON=drawn(2 * number + 1, O, N),
            second_moment=moment,
            memory=memory,
            weight_OI=drawn(99, O, I),
        )
        update = editor.solve(problem, settings).update
        found.append(update.dense())
        assert isinstance(update, FactoredUpdate) == editor.factored
        memory = editor.remember(memory, problem.keys_IN)
    assert isinstance(memory, KeyMemory)
    return found, memory


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("rounds", [6, ROUNDS])
def test_without_room_all_lies_in_host_memory_and_gives_the_same_bits(
    name: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = _updates(name, SecondMoment(spectrum_moment(I, 100), 5.0), rounds=rounds)
    host, moment = Host(monkeypatch), SecondMoment(spectrum_moment(I, 100), 5.0)
    ours, memory = _updates(name, moment, rounds=rounds)
    assert all(torch.equal(own, other) for own, other in zip(ours, wanted, strict=True))
    # Keys and their Gram matrix, and the moment itself, are the CPU's from the beginning.
    given = {id(memory.keys_IP), id(memory.gram_II), id(moment.moment_II)}
    found = [one for one in _tensors([memory, moment], set()) if id(one) not in given]
    assert found
    assert sum(one.nbytes for one in found if id(one) not in host.held) == 0


def test_earlier_keys_take_what_their_parts_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round more is a part more: no copy of those before is written or kept."""
    host, moment = Host(monkeypatch), SecondMoment(spectrum_moment(I, 100), 5.0)
    _, memory = _updates("memit", moment, rounds=6)
    prepared = memory._prepared
    assert prepared is not None and prepared.whitened is not None
    parts = (*prepared.whitened.columns, *prepared.whitened.rows)
    count = 6 * N
    assert sum(part.nbytes for part in parts) == 8 * (I * count + sum(N * N * (n + 1) for n in range(6)))
    factor = 8 * I * I
    assert sum(values.nbytes for values in host.held.values()) == sum(part.nbytes for part in parts) + factor


def test_a_matrix_stays_where_there_is_room_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "free_memory", lambda device: 800)
    assert kept.stays(torch.device("cuda"), 100) and not kept.stays(torch.device("cuda"), 101)
    monkeypatch.setattr(kept, "free_memory", lambda device: None)
    assert not kept.stays(torch.device("cuda"), 1)
    assert kept.stays(torch.device("cpu"), 2**60)
