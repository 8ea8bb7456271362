"""Whole rounds of edits by phase: facts a second, memory at the peak, and the share of what a matrix product reaches."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from common import Record, synchronize, timed
from shapes import Subject
from torch.utils.flop_counter import FlopCounterMode

from reviver.editing import rounds as rounds_module
from reviver.editing.editors import Editor, SecondMoment, get_editor
from reviver.editing.layer import EditedLayer
from reviver.editing.model import EditableModel
from reviver.editing.moments import MomentSums, add_moments
from reviver.editing.rounds import RoundSettings, run_round
from reviver.editing.targets import find_targets
from reviver.spectral.basis import compute_basis

GIB = 1024**3


def ceiling(subject: Subject) -> dict[str, object]:
    """Return the operations a second of a large matrix product in the model's dtype, the best of some runs."""
    weight = subject.model.weight(subject.model.layers[0])
    side = 8192 if weight.device.type == "cuda" else 1024
    left = torch.randn(side, side, device=weight.device).to(weight.dtype)
    right = torch.randn(side, side, device=weight.device).to(weight.dtype)
    seconds, _ = timed(lambda: left @ right, weight.device, 10)
    return {"side": side, "dtype": str(weight.dtype), "operations_a_second": 2 * side**3 / seconds}


class Phases:
    """Seconds by phase of a round, taken by standing around the functions that a round calls."""

    def __init__(self, model: EditableModel, clock: Callable[[], float] = time.perf_counter) -> None:
        self.model = model
        self.clock = clock
        self.seconds: dict[str, float] = {}

    def editor(self, editor: Editor) -> Editor:
        """Return an editor whose solves are counted."""
        return replace(editor, solve=self._timed(editor.solve, "solve"))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the rounds inside."""
        watched = {
            (rounds_module, "find_targets"): "targets",
            (rounds_module.SubjectStates, "__init__"): "keys",
            (rounds_module.SubjectStates, "measure"): "keys",
            (EditedLayer, "add"): "filter and sum",
            (EditableModel, "put_weight"): "put",
            (rounds_module, "_check"): "check",
        }
        kept = {place: getattr(*place) for place in watched}
        for (owner, name), phase in watched.items():
            setattr(owner, name, self._timed(kept[owner, name], phase))
        try:
            yield
        finally:
            for (owner, name), function in kept.items():
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed_function(*arguments: Any, **keywords: Any) -> Any:
            synchronize(self.model.device)
            start = self.clock()
            try:
                return function(*arguments, **keywords)
            finally:
                synchronize(self.model.device)
                self.seconds[phase] = self.seconds.get(phase, 0.0) + self.clock() - start

        return timed_function


def open_by_hand(subject: Subject, record: Record | None, *, rank: int, tokens: int) -> list[EditedLayer]:
    """Return the edited layers of a model that is in no workspace: bases and second moments computed here, and timed."""
    model = subject.model
    texts = subject.texts(tokens)
    sums = MomentSums.empty(model, model.layers)
    took, _ = timed(lambda: add_moments(model, texts, sums, tokens=texts.tokens), model.device)
    if record is not None:
        record.add("prepare", {"what": "second moments", "tokens": sums.tokens, "seconds": took})
    layers = []
    for layer in model.layers:
        base_DE = model.weight(layer).detach().clone()
        seconds, basis = timed(lambda base_DE=base_DE: compute_basis(base_DE, rank, spectrum=False), model.device)
        moment_II = sums.second_moment(layer).cpu()
        del sums.sums[layer]
        moment = SecondMoment(moment_II, subject.preset.moment_weight, device=model.device)
        factoring, _ = timed(moment.factor, model.device)
        if record is not None:
            record.add("prepare", {"what": f"block {layer}", "basis_s": seconds, "factor_s": factoring})
        layers.append(
            EditedLayer(
                layer=layer,
                name=model.names[layer],
                dtype={torch.float32: "F32", torch.float16: "F16"}.get(base_DE.dtype, "BF16"),
                transposed=False,
                base_DE=base_DE,
                live_DE=base_DE.float(),
                basis=basis,
                rank=rank,
                moment=moment,
            )
        )
    return layers


def flops_of_a_fact(subject: Subject, count: int) -> float:
    """Return the operations that the search for one target takes, counted over some facts."""
    with FlopCounterMode(display=False) as counter:
        find_targets(subject.model, subject.facts(count, seed=99), subject.prefixes, subject.settings)
    return float(counter.get_total_flops()) / count


def run(subject: Subject, record: Record, arguments: argparse.Namespace, seconds: float) -> None:
    """Run rounds of MEMIT under the filter until the time is used, and record each."""
    model = subject.model
    started = time.perf_counter()
    on_gpu = model.device.type == "cuda"
    ballast = None
    if on_gpu and arguments.memory:
        free = torch.cuda.mem_get_info()[0]
        used = torch.cuda.memory_allocated()
        ballast = torch.empty(max(0, int(free + used - arguments.memory * GIB)), dtype=torch.uint8, device=model.device)
    rank = min(subject.preset.rank, model.outer_width(model.layers[0]) // 4)
    tokens = min(10 * model.inner_width(model.layers[0]), arguments.tokens if not on_gpu else 10**9)
    layers = open_by_hand(subject, record, rank=rank, tokens=tokens)
    if arguments.late:
        for edited in layers:
            edited.total.add_dense(torch.zeros(edited.total.shape))
    operations = flops_of_a_fact(subject, min(20, arguments.facts))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    editor = get_editor("memit")
    settings = RoundSettings(
        editor=editor,
        editor_settings=editor.settings(),
        filter="revive",
        targets=subject.settings,
        maximum_relative_norm=float("inf"),
    )
    total, number = 0.0, 0
    while number < arguments.rounds and time.perf_counter() - started + (total / number if number else 0) < seconds:
        phases = Phases(model)
        counted = replace(settings, editor=phases.editor(editor))
        facts = subject.facts(arguments.facts, seed=number)
        with phases.watching():
            took, done = timed(
                lambda facts=facts, counted=counted: run_round(model, layers, facts, subject.prefixes, counted),
                model.device,
            )
        for edited in layers:
            edited.fresh.clear()
        number, total = number + 1, total + took
        row: dict[str, object] = {
            "round": number,
            "seconds": took,
            "facts_a_second": len(facts) / took,
            "operations_a_second": operations * len(facts) / phases.seconds["targets"],
            **{phase: round(spent, 4) for phase, spent in phases.seconds.items()},
            "mean_steps": done.mean_steps,
        }
        if on_gpu:
            held = 0 if ballast is None else ballast.numel()
            row["peak_gib"] = (torch.cuda.max_memory_allocated() - held) / GIB
        record.add("rounds", row)
    if number:
        facts_a_second = number * arguments.facts / total
        record.add(
            "rounds",
            {
                "what": f"all {number} rounds of {arguments.facts} facts",
                "facts_a_second": facts_a_second,
                "measured_s": total,
                "20000_facts_min_extrapolated": 20_000 / facts_a_second / 60,
            },
        )
