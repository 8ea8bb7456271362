"""Targets, keys and partial runs against the plain method: one fact at a time, whole rows, the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import open_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from reviver.editing import search
from reviver.editing.beginnings import Beginnings
from reviver.editing.keys import SubjectStates
from reviver.editing.model import EditableModel
from reviver.editing.propagation import logits_at, run_to
from reviver.editing.targets import TargetSettings, fact_rows, find_targets
from reviver.editing.tokens import make_batch, tokenize_rows
from reviver.editing.upper import Upper
from reviver.errors import NumericsError
from reviver.facts.fact import Fact

FACTS = (
    Fact(id="a", prompt="The capital of {} is", subject="Orvania", target_new="Calmar"),
    Fact(id="b", prompt="{} plays the", subject="Mara Venn", target_new="river Ilva"),
    Fact(id="c", prompt="In Tessel , {} was born near", subject="Oskar Lund", target_new="Brundia"),
)
PREFIXES = ("The cello. ", "Because I was in Calmar near the river. ")
SETTINGS = TargetSettings(steps=8, learning_rate=0.3, clamp=0.9, weight_decay=0.5, kl=0.0625)


def _shifted_logits(
    model: EditableModel, ids: tuple[int, ...], place: int, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one whole row with a shift added to the output of the last edited block at one token."""
    seen = []

    def add(_module: object, _arguments: object, output: object) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden[0, place].detach().clone())
        moved = hidden.clone()
        moved[0, place] = moved[0, place] + shift
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = model.blocks[model.layers[-1]].register_forward_hook(add)
    try:
        logits = model.network(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits, seen[0]


def _plain_target(model: EditableModel, fact: Fact, closed_OC: torch.Tensor | None = None) -> torch.Tensor:
    """The published procedure for one fact: torch's own Adam, whole rows, one after the other.

    Where directions are closed, the shift is what a free vector has outside of them, and autograd finds the way to it.
    """
    rows = fact_rows(model, [fact], ("", *PREFIXES), targets=True)
    (kl_row,) = tokenize_rows(model.tokenizer, [f"{fact.subject} is a"], [""], [len(fact.subject)], window=model.window)
    hidden = model.network.config.hidden_size
    free = torch.zeros(hidden, requires_grad=True)
    opened = torch.eye(hidden) if closed_OC is None else torch.eye(hidden) - closed_OC @ closed_OC.T
    optimizer = torch.optim.Adam([free], lr=SETTINGS.learning_rate)
    before, _ = _shifted_logits(model, kl_row.ids, kl_row.subject, torch.zeros(hidden))
    before = torch.log_softmax(before[kl_row.subject], -1).detach()
    origin = torch.zeros(hidden)
    for step in range(1, SETTINGS.steps + 1):
        losses = []
        shift = opened @ free
        for number, row in enumerate(rows):
            logits, state = _shifted_logits(model, row.ids, row.subject, shift)
            if number == 0:
                origin = state
            log = torch.log_softmax(logits[row.target - 1 : len(row.ids) - 1], -1)
            losses.append(-log[torch.arange(len(row.target_ids)), list(row.target_ids)].mean())
        after, _ = _shifted_logits(model, kl_row.ids, kl_row.subject, shift)
        after = torch.log_softmax(after[kl_row.subject], -1)
        divergence = (after.exp() * (after - before)).sum()
        decay = SETTINGS.weight_decay * shift.norm() / origin.norm() ** 2
        loss = torch.stack(losses).mean() + SETTINGS.kl * divergence + decay
        if loss < SETTINGS.stop_loss or step == SETTINGS.steps:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            limit = SETTINGS.clamp * origin.norm()
            size = (opened @ free).norm()
            if size > limit:
                free.mul_(limit / size)
    return origin + shift.detach()


def test_all_targets_at_once_are_those_found_one_by_one(tiny: EditableModel) -> None:
    found = find_targets(tiny, FACTS, PREFIXES, SETTINGS)
    for number, fact in enumerate(FACTS):
        plain = _plain_target(tiny, fact)
        assert (found.target_NO[number] - plain).norm() <= 2e-3 * plain.norm()


@pytest.mark.parametrize("clamp", [SETTINGS.clamp, 0.2])
@pytest.mark.parametrize("width", [1, 20])
def test_no_shift_goes_into_closed_directions(
    tiny: EditableModel, width: int, clamp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.SETTINGS", replace(SETTINGS, clamp=clamp))
    generator = torch.Generator().manual_seed(width)
    closed_OC, _ = torch.linalg.qr(torch.randn(tiny.outer_width(tiny.layers[-1]), width, generator=generator))
    found = find_targets(tiny, FACTS, PREFIXES, SETTINGS, closed_OC=closed_OC)
    free = find_targets(tiny, FACTS, PREFIXES, SETTINGS)
    for number, fact in enumerate(FACTS):
        plain = _plain_target(tiny, fact, closed_OC)
        assert (found.target_NO[number] - plain).norm() <= 2e-3 * plain.norm()
        row = fact_rows(tiny, [fact], ("",), targets=True)[0]
        _, origin = _shifted_logits(tiny, row.ids, row.subject, torch.zeros_like(plain))
        shift = found.target_NO[number] - origin
        assert (closed_OC.T @ shift).norm() <= 1e-5 * shift.norm()
        assert (closed_OC.T @ (free.target_NO[number] - origin)).norm() > 1e-2 * shift.norm()


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gptj", "opt", "phi3"])
def test_targets_of_other_families_are_those_found_one_by_one(family: str, tmp_path: Path) -> None:
    model = open_tiny(tmp_path / "base", family)
    found = find_targets(model, FACTS[1:2], PREFIXES, SETTINGS)
    plain = _plain_target(model, FACTS[1])
    assert (found.target_NO[0] - plain).norm() <= 5e-3 * plain.norm()


def test_chunks_and_finished_facts_change_nothing(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_targets(tiny, FACTS, PREFIXES, SETTINGS)
    alone = TargetSettings(**{**_values(SETTINGS), "token_budget": 1})
    parted = find_targets(tiny, FACTS, PREFIXES, alone)
    torch.testing.assert_close(parted.target_NO, whole.target_NO, rtol=1e-3, atol=1e-3)
    # With a stop between the facts' losses some end early; the others must not notice.
    between = float(whole.loss_N.sort().values[1]) + 1e-3
    stopped = find_targets(tiny, FACTS, PREFIXES, TargetSettings(**{**_values(SETTINGS), "stop_loss": between}))
    assert stopped.steps_N.min() < SETTINGS.steps
    # A host that looks only now and then, as on a GPU, finds the same: what is done stays as it was.
    monkeypatch.setattr(search, "check_steps", lambda device: 3)
    seldom = find_targets(tiny, FACTS, PREFIXES, TargetSettings(**{**_values(SETTINGS), "stop_loss": between}))
    assert torch.equal(seldom.steps_N, stopped.steps_N)
    torch.testing.assert_close(seldom.target_NO, stopped.target_NO, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seldom.loss_N, stopped.loss_N, rtol=1e-4, atol=1e-4)
    for number in torch.nonzero(stopped.steps_N == SETTINGS.steps).flatten().tolist():
        torch.testing.assert_close(stopped.target_NO[number], whole.target_NO[number], rtol=1e-3, atol=1e-3)


def _values(settings: TargetSettings) -> dict[str, float | int]:
    return {name: getattr(settings, name) for name in TargetSettings.__slots__}


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gemma3_text", "gpt2", "gptj", "gpt_neox", "opt", "phi3", "olmo2", "mistral", "qwen3"]
)
def test_a_part_of_the_model_computes_what_the_whole_does(family: str, tmp_path: Path) -> None:
    model = open_tiny(tmp_path / "base", family)
    rows = fact_rows(model, FACTS, ("", *PREFIXES), targets=True)
    column = max(row.subject for row in rows)
    batch = make_batch([row.ids for row in rows], model.device, align=[row.subject for row in rows])
    upper = Upper.compute(model, batch, 1, column)
    places = [
        (index, place - row.subject) for index, row in enumerate(rows) for place in range(row.subject, len(row.ids))
    ]
    logits = upper.logits(upper.states_BSH, torch.tensor(places))
    assert torch.isfinite(logits).all()
    start = 0
    for row in rows:
        with torch.no_grad():
            whole = model.network(torch.tensor([row.ids])).logits[0, row.subject :]
        torch.testing.assert_close(logits[start : start + len(whole)], whole, rtol=1e-3, atol=1e-3)
        start += len(whole)
    # The second call replays what the model handed to its blocks in the first.
    torch.testing.assert_close(upper.logits(upper.states_BSH, torch.tensor(places)), logits)
    shifted = torch.randn_like(upper.states_BSH)
    torch.testing.assert_close(
        upper.logits(shifted, torch.tensor(places)),
        upper.select(torch.arange(len(rows))).logits(shifted, torch.tensor(places)),
    )
    # Rows whose beginnings were computed for all rows of their context at once.
    contexts = len(PREFIXES) + 1
    beginnings = Beginnings(model, [rows[context::contexts] for context in range(contexts)])
    assert min(beginnings.lengths[1:]) > 3
    beginnings.reach(len(model.blocks) - 1)
    starts = [beginnings.lengths[index % contexts] for index in range(len(rows))]
    subjects = [row.subject - start for row, start in zip(rows, starts, strict=True)]
    short = make_batch(
        [row.ids[start:] for row, start in zip(rows, starts, strict=True)], model.device, align=subjects, starts=starts
    )
    past = beginnings.past([index % contexts for index in range(len(rows))], 0, len(model.blocks) - 1)
    behind = Upper.compute(model, short, 1, max(subjects), past=past)
    torch.testing.assert_close(behind.logits(behind.states_BSH, torch.tensor(places)), logits, rtol=1e-3, atol=1e-3)
    chosen = upper.select(torch.tensor([1, 4]))
    kept = chosen.logits(chosen.states_BSH, torch.tensor([[0, 0], [1, 0]]))
    full = upper.logits(upper.states_BSH, torch.tensor([[1, 0], [4, 0]]))
    torch.testing.assert_close(kept, full, rtol=1e-3, atol=1e-3)
    plain = make_batch([row.ids for row in rows], model.device)
    everywhere = torch.tensor([(index, len(row.ids) - 1) for index, row in enumerate(rows)])
    last = logits_at(model, plain, everywhere)
    for index, row in enumerate(rows):
        with torch.no_grad():
            torch.testing.assert_close(
                last[index], model.network(torch.tensor([row.ids])).logits[0, -1], rtol=1e-3, atol=1e-3
            )
    inputs, outputs = run_to(model, plain, 2, seen=(1, 2))
    again, _ = run_to(model, plain, 2, first=2, states_BTH=outputs[1], seen=(2,))
    mask = plain.mask_BT.bool()
    torch.testing.assert_close(again[2][mask], inputs[2][mask], rtol=1e-4, atol=1e-4)


def test_keys_and_states_are_those_of_whole_prompts(tiny: EditableModel) -> None:
    states = SubjectStates(tiny, FACTS, PREFIXES, token_budget=40)
    for layer in tiny.layers:
        keys, hidden = states.measure(layer)
        for number, fact in enumerate(FACTS):
            expected = []
            for prefix in ("", *PREFIXES):
                (row,) = fact_rows(tiny, [fact], (prefix,), targets=False)
                inputs, outputs = run_to(tiny, make_batch([row.ids], tiny.device), tiny.layers[-1], seen=(layer,))
                expected.append(inputs[layer][0, row.subject])
                if prefix == "":
                    torch.testing.assert_close(
                        hidden[:, number], outputs[tiny.layers[-1]][0, row.subject], rtol=1e-4, atol=1e-4
                    )
            key = expected[0] / 2 + torch.stack(expected[1:]).mean(0) / 2
            torch.testing.assert_close(keys[:, number], key, rtol=1e-4, atol=1e-4)
        # The next block must see what an edit of this one does.
        with torch.no_grad():
            tiny.weight(layer).mul_(1.0 if layer == tiny.layers[-1] else 1.05)
    with torch.no_grad():
        tiny.weight(tiny.layers[0]).div_(1.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("fact", [0, 2])
@pytest.mark.parametrize("bad", range(1, SETTINGS.steps + 1))
@pytest.mark.parametrize("check", [1, 4])
def test_a_loss_that_is_not_finite_is_never_forgotten(
    tiny: EditableModel, check: int, bad: int, fact: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the host looks at this step or later, and though the fact's shift stays finite."""
    plain, calls = search.Search._loss, []

    def spoilt(
        self: search.Search, parts: Any, shift_AO: torch.Tensor, index_A: torch.Tensor, *, first: bool
    ) -> torch.Tensor:
        calls.append(1)
        loss_A: torch.Tensor = plain(self, parts, shift_AO, index_A, first=first)
        return torch.where(index_A == fact, value, loss_A) if len(calls) == bad else loss_A

    monkeypatch.setattr(search, "check_steps", lambda device: check)
    monkeypatch.setattr(search, "group_facts", lambda facts, *_: [list(range(len(facts)))])
    monkeypatch.setattr("reviver.editing.targets.group_facts", search.group_facts)
    monkeypatch.setattr(search.Search, "_loss", spoilt)
    with pytest.raises(NumericsError, match="search for targets"):
        find_targets(tiny, FACTS, PREFIXES[:1], SETTINGS)
    assert len(calls) >= bad


def test_a_loss_alone_that_is_not_finite_is_refused(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    run = search.Search.run

    def spoilt(self: search.Search, advance: Any) -> tuple[torch.Tensor, ...]:
        target_NO, loss_N, steps_N = run(self, advance)
        return target_NO, torch.full_like(loss_N, float("nan")), steps_N

    monkeypatch.setattr(search.Search, "run", spoilt)
    with pytest.raises(NumericsError, match="search for targets"):
        find_targets(tiny, FACTS, PREFIXES[:1], SETTINGS)


class _HostReads(TorchDispatchMode):
    """Counts the operations whose result the host reads: on a GPU each of them waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        name = str(function)
        by_mask = name.startswith(("aten.index.", "aten.index_put")) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in arguments[1]
        )
        if by_mask or name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal")):
            self.count += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_no_step_waits_for_the_device(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_tiny(tmp_path / "base", family)
    monkeypatch.setattr(search, "check_steps", lambda device: 100)
    counts = []
    for steps in (3, 9):
        with _HostReads() as reads:
            find_targets(model, FACTS, PREFIXES, TargetSettings(**{**_values(SETTINGS), "steps": steps}))
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0
