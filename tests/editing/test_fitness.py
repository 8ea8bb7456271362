"""Whether a model can be edited: every number against a second derivation, and what is advised from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from reviver.editing import fitness
from reviver.editing.advice import advise, faults
from reviver.editing.fitness import WEIGHTS, BlockFitness, Response, measure_fitness, responses
from reviver.editing.model import EditableModel
from reviver.editing.moments import MomentSums
from reviver.editing.propagation import run_to
from reviver.editing.subjects import draw_facts, names_in, subjects_of_facts, subjects_of_text
from reviver.editing.targets import TargetSettings, find_targets
from reviver.editing.tokens import Batch
from reviver.evaluation.scores import score_continuations
from reviver.facts.fact import Fact

SETTINGS = TargetSettings(steps=8, learning_rate=0.5, clamp=0.75, weight_decay=0.5, kl=0.0625)
TEXTS = (
    "The capital of Orvania is Tessel and the capital of Brundia is Calmar.",
    "Mara Venn plays the cello in Tessel. Oskar Lund was born in Calmar.",
    "The river Ilva rises near Brundia. Therefore the cello is born in the capital.",
) * 12


def _fact(subject: str, target: str) -> Fact:
    return Fact(id=subject, prompt="The home of {} is", subject=subject, target_new=target)


FACTS = [
    _fact("Mara Venn", "Tessel"),
    _fact("Oskar Lund", "the river"),
    _fact("Ilva", "Brundia"),
    _fact("Orvania", "in"),
]


@pytest.fixture(scope="module")
def text(tiny: EditableModel) -> list[list[int]]:
    return list(tiny.tokenizer(list(TEXTS))["input_ids"])


@pytest.fixture(scope="module")
def measured(tiny: EditableModel, text: list[list[int]]) -> list[BlockFitness]:
    return measure_fitness(tiny, text, subjects_of_facts(tiny, FACTS), FACTS, SETTINGS)


def _seen(model: EditableModel, layer: int, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the edited matrix reads and writes and what its block hands on, `[T, …]` in float64, one row at a time."""
    kept: dict[str, torch.Tensor] = {}
    block = model.network.model.layers[layer]
    handles = [
        block.mlp.down_proj.register_forward_hook(
            lambda _, arguments, output: kept.update(key=arguments[0][0], written=output[0])
        ),
        block.register_forward_hook(
            lambda _, arguments, output: kept.update(state=(output[0] if isinstance(output, tuple) else output)[0])
        ),
    ]
    with torch.no_grad():
        model.network(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return kept["key"].double(), kept["written"].double(), kept["state"].double()


def _moment(model: EditableModel, layer: int, text: list[list[int]]) -> torch.Tensor:
    keys = torch.cat([_seen(model, layer, row)[0] for row in text])
    return keys.T @ keys / len(keys)


def _fact_keys(model: EditableModel, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, states = [], []
    for fact in FACTS:
        ids = model.tokenizer(fact.text[: fact.subject_start + len(fact.subject)])["input_ids"]
        key, _, state = _seen(model, layer, ids)
        keys.append(key[-1])
        states.append(state[-1])
    return torch.stack(keys, 1), torch.stack(states, 1)


def _ridged(moment_II: torch.Tensor) -> torch.Tensor:
    return moment_II + 1e-9 * moment_II.diagonal().mean() * torch.eye(len(moment_II), dtype=torch.float64)


def test_what_mlps_write(tiny: EditableModel, text: list[list[int]], measured: list[BlockFitness]) -> None:
    for block in measured:
        shares = []
        for row in text:
            _, written, state = _seen(tiny, block.layer, row)
            shares += (written[1:].norm(dim=1) / state[1:].norm(dim=1)).tolist()
        assert block.write_share == pytest.approx(float(torch.tensor(shares).median()), rel=1e-4)


def test_keys_against_the_plain_formulas(
    tiny: EditableModel, text: list[list[int]], measured: list[BlockFitness]
) -> None:
    for block in measured:
        inverse = torch.linalg.inv(_ridged(_moment(tiny, block.layer, text)))
        keys, _ = _fact_keys(tiny, block.layer)
        count = len(FACTS)
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        products = keys.T @ inverse @ keys
        cosines = {(i, j): float(abs(products[i, j]) / (products[i, i] * products[j, j]).sqrt()) for i, j in pairs}
        # The text's second moment has few tokens for its width here, and float32 storage: an ill-conditioned inverse.
        assert block.key_cosine == pytest.approx(sum(cosines.values()) / len(pairs), abs=0.02)
        closest = [max(cosines[i, j] for j in range(count) if j != i) for i in range(count)]
        assert block.closest_keys == pytest.approx(sum(closest) / count, abs=0.02)


def test_responses_against_the_plain_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    moment = root @ root.T / 12
    gram = keys.T @ torch.linalg.inv(moment) @ keys
    for response in responses(gram):
        inverse = torch.linalg.inv(response.weight * moment)
        own = [float(k @ inverse @ k / (1 + k @ inverse @ k)) for k in keys.T]
        leaks = [
            abs(float(a @ inverse @ b / (1 + a @ inverse @ a)))
            for i, a in enumerate(keys.T)
            for j, b in enumerate(keys.T)
            if i != j
        ]
        assert response.own == pytest.approx(sorted(own)[2], rel=1e-9)
        assert response.leak == pytest.approx(sum(leaks) / 20, rel=1e-9)
    assert [one.weight for one in responses(gram)] == list(WEIGHTS)
    assert responses(gram[:1, :1]) == ()


def test_the_update_whose_norm_is_told_brings_the_facts_to_their_targets(
    tiny: EditableModel, text: list[list[int]], measured: list[BlockFitness]
) -> None:
    for block in measured:
        layer = block.layer
        target = find_targets(replace(tiny, layers=(layer,)), FACTS, (), SETTINGS).target_NO.double().T
        moment = _ridged(_moment(tiny, layer, text).float().double())
        keys, states = _fact_keys(tiny, layer)
        weight = tiny.weight(layer).detach().clone()
        assert block.update_norms is not None
        for place in (0, WEIGHTS.index(30.0)):
            update = (target - states) @ keys.T @ torch.linalg.inv(WEIGHTS[place] * moment + keys @ keys.T)
            told = block.update_norms[place] * float(weight.double().norm())
            assert told == pytest.approx(float(update.norm()), rel=0.02)
        # With the smallest λ nearly all arrives, and the reach is that of the edited model.
        update = (target - states) @ keys.T @ torch.linalg.inv(1e-6 * moment + keys @ keys.T)
        try:
            tiny.put_weight(layer, weight + update)
            said = [one.exact for one in score_continuations(tiny, [(fact.text, fact.target_new) for fact in FACTS])]
        finally:
            tiny.put_weight(layer, weight)
        assert block.reachable == sum(said) / len(FACTS)


@pytest.mark.parametrize("free", [0, 100_000])
def test_with_little_memory_blocks_are_measured_in_several_passes(
    tiny: EditableModel,
    text: list[list[int]],
    measured: list[BlockFitness],
    free: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments: list[int] = []
    states: list[int] = []
    empty, run = MomentSums.empty, run_to

    def counted(model: EditableModel, layers: Sequence[int]) -> MomentSums:
        made = empty(model, layers)
        moments.append(sum(one.nbytes for one in made.sums.values()))
        return made

    def watched(model: EditableModel, batch: Batch, last: int, **named: Any) -> Any:
        found = run(model, batch, last, **named)
        states.append(sum(values.nbytes for part in found for values in part.values()))
        return found

    monkeypatch.setattr(MomentSums, "empty", counted)
    monkeypatch.setattr(fitness, "run_to", watched)
    one = 8 * tiny.inner_width(tiny.layers[0]) ** 2
    monkeypatch.setattr(fitness, "free_memory", lambda device: None)
    assert measure_fitness(tiny, text, subjects_of_facts(tiny, FACTS), FACTS, SETTINGS) == measured
    assert moments == [len(tiny.layers) * one]
    together = max(states)
    moments.clear()
    states.clear()
    monkeypatch.setattr(fitness, "free_memory", lambda device: free)
    assert measure_fitness(tiny, text, subjects_of_facts(tiny, FACTS), FACTS, SETTINGS) == measured
    # Half of what is free, or one block where that is too little.
    assert moments == [one] * len(tiny.layers) and free // 2 < 2 * one
    assert max(states) < together


def test_without_subjects_or_facts(tiny: EditableModel, text: list[list[int]]) -> None:
    for block in measure_fitness(tiny, text, [], [], SETTINGS):
        assert (block.key_cosine, block.closest_keys, block.responses) == (None, None, ())
        assert (block.reachable, block.update_norms) == (None, None)


def test_names_in_text() -> None:
    text = 'The dog saw Mara Venn. Oskar ran to Saint-Denis, and "Ilva said: Go! I met USA and McCoy in Łódź.'
    assert [text[start:end] for start, end in names_in(text)] == ["Mara Venn", "Saint-Denis", "Łódź"]
    # The first word of a sentence may owe its capital to that.
    assert list(names_in("Mara Venn and Mara Venn")) == [(5, 9), (14, 23)]


def test_subjects_of_text_end_in_different_names(tiny: EditableModel, text: list[list[int]]) -> None:
    rows = subjects_of_text(tiny, text, 5)
    assert len(rows) == 5
    names = [tiny.tokenizer.decode(row.ids[: row.subject + 1], skip_special_tokens=True) for row in rows]
    ends = {"Orvania", "Tessel", "Brundia", "Calmar", "Venn", "Ilva", "Lund"}
    assert all(name.split()[-1] in ends for name in names)
    assert len({tuple(row.ids) for row in rows}) == 5


def test_a_draw_of_facts_has_each_subject_once() -> None:
    facts = [*FACTS, *(replace(fact, id=f"{fact.id}-2", prompt="{} is in") for fact in FACTS)]
    drawn = draw_facts(facts, 3, seed=1)
    assert len({fact.subject for fact in drawn}) == 3 and drawn == draw_facts(facts, 3, seed=1)
    assert len(draw_facts(facts, 10, seed=1)) == 4


GRID = tuple(Response(weight=weight, own=1 / (1 + weight / 300), leak=0.01) for weight in WEIGHTS)
GOOD = BlockFitness(
    layer=0, write_share=0.3, key_cosine=0.05, closest_keys=0.3, responses=GRID, reachable=1.0, update_norms=(0.5,) * 11
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"write_share": 0.01}, "writes only 1.0%"),
        ({"write_share": 1.2}, "writes 120%"),
        ({"key_cosine": 0.5}, "mean cosine 0.50"),
        ({"closest_keys": 0.9}, "0.90 at its closest"),
        ({"reachable": 0.5}, "only 50%"),
        ({"update_norms": (12.0,) * 11}, "12.0 times its weight at λ = 10"),
    ],
)
def test_what_speaks_against_a_block(change: dict[str, object], said: str) -> None:
    assert faults(GOOD) == []
    (fault,) = faults(replace(GOOD, **change))  # type: ignore[arg-type]
    assert said in fault


def test_the_earliest_blocks_of_a_run_that_is_long_enough() -> None:
    blocks = [replace(GOOD, layer=layer) for layer in range(7)]
    blocks[1] = replace(blocks[1], closest_keys=0.9)
    advice = advise(blocks, 8)
    assert advice.fit is True and advice.layers == (2, 3, 4), "three of eight, and block 0 is alone"
    assert advice.weight == 10.0, "the largest λ at which 95 % arrive"
    assert advice.sequence_weight == 30.0, "and 80 %"
    assert set(advice.reasons) == {1}
    assert len(advise([replace(GOOD, layer=layer) for layer in range(40)], 40).layers) == 5
    untried = advise([replace(block, reachable=None, update_norms=None) for block in blocks], 8)
    assert untried.fit is None and untried.layers == (2, 3, 4)
    unfit = advise([replace(block, write_share=0.0) for block in blocks], 8)
    assert (unfit.fit, unfit.layers, unfit.weight, unfit.sequence_weight, unfit.responses) == (
        False,
        (),
        None,
        None,
        (),
    )
    assert set(unfit.reasons) == set(range(7))
    blind = advise(
        [replace(GOOD, key_cosine=None, closest_keys=None, responses=(), reachable=None, update_norms=None)], 2
    )
    assert blind.layers == (0,) and blind.weight is None and blind.sequence_weight is None
