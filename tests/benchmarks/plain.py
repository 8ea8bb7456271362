"""The plain formulations, as public research code has them: a fact at a time, the whole model, the head over all positions.

They are the measure of how much faster the package is, and an independent derivation of what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reviver.editing.model import EditableModel
from reviver.editing.targets import TargetSettings, fact_rows
from reviver.editing.tokens import make_batch, tokenize_rows
from reviver.facts.fact import Fact


def plain_target(
    model: EditableModel, fact: Fact, prefixes: Sequence[str], settings: TargetSettings
) -> tuple[Tensor, int, float]:
    """Return the target `[O]` of one fact, the steps it took and its last loss: one batch of its contexts, torch's own Adam."""
    rows = fact_rows(model, [fact], ("", *prefixes), targets=True)
    (kl_row,) = tokenize_rows(model.tokenizer, [f"{fact.subject} is a"], [""], [len(fact.subject)], window=model.window)
    batch = make_batch([row.ids for row in (*rows, kl_row)], model.device)
    number = torch.arange(len(rows) + 1, device=model.device)
    place = torch.tensor([row.subject for row in (*rows, kl_row)], device=model.device)
    origin: list[Tensor] = []
    shift = torch.zeros(model.outer_width(model.layers[-1]), device=model.device, requires_grad=True)

    def add(_module: object, _arguments: object, output: Tensor) -> Tensor:
        if not origin:
            origin.append(output[0, rows[0].subject].detach().float())
        output = output.clone()
        output[number, place] += shift.to(output.dtype)
        return output

    optimizer = torch.optim.Adam([shift], lr=settings.learning_rate)
    before = None
    handle = model.blocks[model.layers[-1]].register_forward_hook(add)
    try:
        for step in range(1, settings.steps + 1):
            logits = model.network(
                input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
            ).logits
            log = torch.log_softmax(logits.float(), -1)
            losses = [
                -log[index, row.target - 1 : len(row.ids) - 1]
                .gather(1, torch.tensor(row.target_ids, device=model.device)[:, None])
                .mean()
                for index, row in enumerate(rows)
            ]
            after = log[len(rows), kl_row.subject]
            before = after.detach() if before is None else before
            divergence = (after.exp() * (after - before)).sum()
            size = origin[0].norm()
            # torch's norm has the subgradient zero at a shift of zero.
            decay = settings.weight_decay * shift.norm() / size**2
            loss = torch.stack(losses).mean() + settings.kl * divergence + decay
            if loss < settings.stop_loss or step == settings.steps:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                if shift.norm() > settings.clamp * size:
                    shift.mul_(settings.clamp * size / shift.norm())
    finally:
        handle.remove()
    return origin[0] + shift.detach(), step, float(loss.detach())


def plain_keys(model: EditableModel, fact: Fact, prefixes: Sequence[str], layer: int) -> tuple[Tensor, Tensor]:
    """Return the key `[I]` of one fact at one block and its state `[O]` at the last edited block, by whole forward passes."""
    seen: list[Tensor] = []
    handle = model.matrix(layer).register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    states: list[Tensor] = []
    other = model.blocks[model.layers[-1]].register_forward_hook(
        lambda _module, _arguments, output: states.append(output)
    )
    keys = []
    try:
        with torch.no_grad():
            for prefix in ("", *prefixes):
                (row,) = fact_rows(model, [fact], (prefix,), targets=False)
                model.network(input_ids=torch.tensor([row.ids], device=model.device), use_cache=False)
                keys.append(seen.pop()[0, row.subject].float())
                if prefix == "":
                    state = states[0][0, row.subject].float()
                states.clear()
    finally:
        handle.remove()
        other.remove()
    return (keys[0] + torch.stack(keys[1:]).mean(0)) / 2, state


def plain_moment(model: EditableModel, texts: Sequence[Sequence[Sequence[int]]], layer: int) -> Tensor:
    """Return `E[k kᵀ]` of one block over batches of token rows, by whole forward passes: a pass for each block."""
    width = model.inner_width(layer)
    total = torch.zeros((width, width), dtype=torch.float64 if model.device.type == "cpu" else torch.float32)
    total = total.to(model.device)
    seen: list[Tensor] = []
    handle = model.matrix(layer).register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    count = 0
    try:
        with torch.no_grad():
            for rows in texts:
                batch = make_batch(rows, model.device)
                model.network(
                    input_ids=batch.ids_BT,
                    attention_mask=batch.mask_BT,
                    position_ids=batch.positions_BT,
                    use_cache=False,
                )
                keys = seen.pop()[batch.mask_BT.bool()].to(total)
                total += keys.T @ keys
                count += len(keys)
    finally:
        handle.remove()
    return total / count
