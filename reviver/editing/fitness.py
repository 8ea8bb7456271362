"""Whether a model can be edited, block by block: what its MLPs write, whether keys tell subjects apart, which facts are in reach.

What each number means for an edit: an MLP that writes little beside the residual stream needs an update far larger than its
weight; subjects whose whitened keys coincide cannot be told apart by any update; a fact whose target no shift of the state behind
a block reaches cannot be written at or below it.

Legend: B rows, T columns, I MLP width, O hidden width, N subjects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reviver.editing.devices import free_memory
from reviver.editing.editors import SecondMoment
from reviver.editing.keys import through_post_norm
from reviver.editing.model import EditableModel
from reviver.editing.moments import MomentSums, add_moments
from reviver.editing.propagation import logits_at, run_to
from reviver.editing.targets import TargetSettings, fact_rows, find_targets
from reviver.editing.tokens import TokenRow, chunks_by_tokens, make_batch
from reviver.facts.fact import Fact
from reviver.progress import NullProgress, Progress

WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""The λ that are tried."""

GROUP_BYTES = 8 * 1024**3
"""How much memory what is measured of several blocks at once may take; blocks beyond it are measured in further passes."""
FREE_SHARE = 0.5
"""The part of what is free that it may take."""

_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What one λ does to keys, at one block or on average over several.

    Attributes:
        weight: λ.
        own: median over subjects of kᵀA⁻¹k/(1 + kᵀA⁻¹k) with A = λC: how much of what is asked for a key arrives there.
        leak: mean over pairs of subjects of |kᵢᵀA⁻¹kⱼ|/(1 + kᵢᵀA⁻¹kᵢ): how much of it arrives at another subject's.
    """

    weight: float
    own: float
    leak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFitness:
    """What was measured of one block; None where there was nothing to measure it on.

    Attributes:
        layer: the block, counted from 0.
        write_share: median over ordinary tokens of the norm that the MLP writes, relative to the residual stream behind the block.
        key_cosine: mean |cosine| of the whitened keys of different subjects.
        closest_keys: mean over subjects of the largest of these.
        responses: for every λ of `WEIGHTS`.
        reachable: share of the probed facts that the model says once the state behind this block is at the target.
        update_norms: for every λ the norm of the update that writes all probed facts at this block alone, relative to the
            weight's.
    """

    layer: int
    write_share: float
    key_cosine: float | None
    closest_keys: float | None
    responses: tuple[Response, ...]
    reachable: float | None
    update_norms: tuple[float, ...] | None


class _Rows:
    """Token rows as a corpus of numbered batches."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._groups = [
            [rows[index] for index in group] for group in chunks_by_tokens([len(row) for row in rows], _TOKENS)
        ]

    def describe(self) -> dict[str, object]:
        """Return how many batches there are."""
        return {"batches": len(self._groups)}

    def batches(self, model: EditableModel, first: int, step: int = 1) -> Iterator[Sequence[Sequence[int]]]:
        """Yield batch `first` and every `step`-th after it."""
        yield from self._groups[first::step]


def measure_fitness(
    model: EditableModel,
    text: Sequence[Sequence[int]],
    subjects: Sequence[TokenRow],
    facts: Sequence[Fact],
    settings: TargetSettings,
    *,
    progress: Progress | None = None,
) -> list[BlockFitness]:
    """Measure every block of `model.layers`.

    Args:
        model: the model, all blocks in question named in `layers`.
        text: ordinary text as token ids, for second moments and for what the MLPs write.
        subjects: one row for each of different subjects; fewer than two leave the keys unmeasured.
        facts: facts whose targets are sought; with none, reach and updates are not measured.
        settings: of the search for targets.
        progress: told the blocks that are done.

    Raises:
        NumericsError: keys or states are not finite.
    """
    shares = _write_shares(model, text)
    fact_row = fact_rows(model, facts, ("",), targets=True)
    found = []
    with (progress or NullProgress()).task("blocks", total=len(model.layers), unit="blocks") as task:
        size = 8 if model.device.type == "cpu" else 4
        for layers in _groups(model, lambda layer: size * model.inner_width(layer) ** 2):
            sums = add_moments(model, _Rows(text), MomentSums.empty(model, layers), tokens=sum(map(len, text)))
            # The device needs its room for solving with one of them.
            moments = {layer: sums.second_moment(layer).cpu() for layer in layers}
            del sums
            keys = _subject_keys(model, [*subjects, *fact_row], layers)
            for layer in layers:
                moment = SecondMoment(moments.pop(layer), 1.0, device=model.device)
                keys_IN, states_ON = keys[layer]
                gram_NN, solved_IN = _inner_products(moment, keys_IN)
                count = len(subjects)
                own = gram_NN[:count, :count]
                reachable, norms = None, None
                if facts:
                    target_NO = find_targets(replace(model, layers=(layer,)), facts, (), settings).target_NO
                    reachable = sum(_said_at(model, layer, fact_row, target_NO)) / len(facts)
                    residual_ON = target_NO.T - states_ON[:, count:]
                    residual_ON = through_post_norm(model, layer, residual_ON, keys_IN[:, count:])
                    norms = _update_norms(
                        residual_ON.double(), gram_NN[count:, count:], solved_IN[:, count:], model.weight(layer)
                    )
                cosine, closest = _cosines(own)
                found.append(
                    BlockFitness(
                        layer=layer,
                        write_share=shares[layer],
                        key_cosine=cosine,
                        closest_keys=closest,
                        responses=responses(own),
                        reachable=reachable,
                        update_norms=norms,
                    )
                )
                task.advance()
    return found


def _groups(model: EditableModel, size: Callable[[int], int]) -> list[list[int]]:
    """Return the blocks in groups of which all that is measured, `size` bytes of each, fits into memory together."""
    free = free_memory(model.device)
    room = GROUP_BYTES if free is None else min(GROUP_BYTES, int(FREE_SHARE * free))
    groups: list[list[int]] = []
    held = 0
    for layer in model.layers:
        needed = size(layer)
        if not groups or held + needed > room:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += needed
    return groups


def _write_shares(model: EditableModel, text: Sequence[Sequence[int]]) -> dict[int, float]:
    """Return for every block the median share of what its MLP writes; a row's first token, which is like no other, is left out."""
    chosen: list[Sequence[int]] = []
    for row in text:
        if chosen and sum(map(len, chosen)) + len(row) > _TOKENS:
            break
        chosen.append(row)
    batch = make_batch(chosen, model.device)
    mask_BT = batch.mask_BT.bool()
    mask_BT[:, 0] = False
    shares = {}

    def states(layer: int) -> int:
        width = model.inner_width(layer) + model.outer_width(layer)
        return batch.ids_BT.numel() * width * model.weight(layer).element_size()

    for layers in _groups(model, states):
        inputs, outputs = run_to(model, batch, layers[-1], seen=layers)
        for layer in layers:
            with torch.no_grad():
                written = model.matrix(layer)(inputs[layer])
                norm = model.post_norm(layer)
                written = written if norm is None else norm(written)
            ratio_M = written[mask_BT].float().norm(dim=-1) / outputs[layer][mask_BT].float().norm(dim=-1)
            shares[layer] = float(ratio_M.median())
        del inputs, outputs
    return shares


def _subject_keys(
    model: EditableModel, rows: Sequence[TokenRow], layers: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return for every block the keys `[I, N]` and the states behind it `[O, N]` at the subjects' last tokens, float32."""
    ids = [row.ids[: row.subject + 1] for row in rows]
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    order: list[int] = []
    for group in chunks_by_tokens([len(row) for row in ids], _TOKENS):
        chosen = [ids[index] for index in group]
        batch = make_batch(chosen, model.device, align=[len(row) - 1 for row in chosen])
        inputs, outputs = run_to(model, batch, layers[-1], seen=layers)
        order += group
        for layer in layers:
            parts[layer].append((inputs[layer][:, -1].float(), outputs[layer][:, -1].float()))
    back = torch.tensor(order, device=model.device).argsort()
    joined = {}
    for layer, found in parts.items():
        if found:
            keys, states = (torch.cat(one)[back].T for one in zip(*found, strict=True))
        else:
            keys, states = (torch.zeros((size, 0), device=model.device) for size in (model.inner_width(layer), 0))
        joined[layer] = (keys, states)
    return joined


def _inner_products(moment: SecondMoment, keys_IN: Tensor) -> tuple[Tensor, Tensor]:
    """Return KᵀC⁻¹K and C⁻¹K in float64."""
    whitened_JN = moment.whiten(keys_IN)
    return whitened_JN.T @ whitened_JN, moment.unwhiten(whitened_JN)


def _cosines(gram_NN: Tensor) -> tuple[float | None, float | None]:
    count = len(gram_NN)
    if count < 2:
        return None, None
    length_N = gram_NN.diagonal().clamp_min(1e-300).sqrt()
    cosine_NN = (gram_NN / length_N[:, None] / length_N[None, :]).abs().fill_diagonal_(0)
    return float(cosine_NN.sum()) / (count * (count - 1)), float(cosine_NN.amax(1).mean())


def responses(gram_NN: Tensor, weights: Sequence[float] = WEIGHTS) -> tuple[Response, ...]:
    """Return what every λ does to keys with the inner products KᵀC⁻¹K; nothing for fewer than two keys."""
    count = len(gram_NN)
    if count < 2:
        return ()
    length_N = gram_NN.diagonal()
    others_NN = gram_NN.abs().clone().fill_diagonal_(0)
    found = []
    for weight in weights:
        # kᵢᵀA⁻¹kⱼ = gᵢⱼ/λ, so that every fraction is written without it.
        own = float((length_N / (weight + length_N)).median())
        leak = float((others_NN / (weight + length_N)[:, None]).sum()) / (count * (count - 1))
        found.append(Response(weight=weight, own=own, leak=leak))
    return tuple(found)


def _update_norms(residual_ON: Tensor, gram_NN: Tensor, solved_IN: Tensor, weight: Tensor) -> tuple[float, ...]:
    """Return for every λ ‖R(λ·1 + KᵀC⁻¹K)⁻¹KᵀC⁻¹‖_F relative to the weight's norm."""
    whole = float(torch.linalg.vector_norm(weight.double()))
    norms = []
    for moment_weight in WEIGHTS:
        system_NN = gram_NN.clone()
        system_NN.diagonal().add_(moment_weight)
        update = residual_ON @ torch.linalg.solve(system_NN, solved_IN.T)
        norms.append(float(torch.linalg.matrix_norm(update)) / whole if whole else math.inf)
    return tuple(norms)


def _said_at(model: EditableModel, layer: int, rows: Sequence[TokenRow], target_NO: Tensor) -> list[bool]:
    """Return for each fact whether all of its target is said when the state behind `layer` is the target's."""
    said = [False] * len(rows)
    for group in chunks_by_tokens([len(row.ids) for row in rows], _TOKENS):
        chosen = [rows[index] for index in group]
        subjects = [row.subject for row in chosen]
        column = max(subjects)
        batch = make_batch([row.ids for row in chosen], model.device, align=subjects)
        states_BO = target_NO[torch.tensor(group, device=model.device)]

        def put(_module: nn.Module, _arguments: Any, output: Any, column: int = column, new: Tensor = states_BO) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[:, column] = new.to(states.dtype)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        places = [
            (slot, place - 1 + column - row.subject)
            for slot, row in enumerate(chosen)
            for place in range(row.target, len(row.ids))
        ]
        handle = model.blocks[layer].register_forward_hook(put)
        try:
            best = logits_at(model, batch, torch.tensor(places, device=model.device)).argmax(-1).tolist()
        finally:
            handle.remove()
        for index, row in zip(group, chosen, strict=True):
            count = len(row.target_ids)
            said[index] = tuple(best[:count]) == row.target_ids
            best = best[count:]
    return said
