"""What UltraEdit reads of a round: keys and output gradients of the edited matrices at the answer's tokens (arXiv 2505.14679).

One forward and one backward pass of each fact under its plain prompt. A position counts when the token that it predicts belongs
to the answer: there the loss has its direct gradient. All tokens of a pass keep what the backward pass needs, in every block from
the lowest edited one on: 7 MB a token of an 8B model. So a pass carries no more of them than a step of the search for targets.

Legend: N answer tokens, I MLP width, O output features; B rows, T columns, M places.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reviver.editing.model import EditableModel
from reviver.editing.propagation import gathered_head
from reviver.editing.recomputation import recomputing
from reviver.editing.targets import fact_rows, step_tokens
from reviver.editing.tokens import TokenRow, chunks_by_tokens, make_batch
from reviver.facts.fact import Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSignals:
    """Keys and gradients of a round.

    Attributes:
        keys_IN: input of each edited matrix at each answer token, by block, float32.
        gradient_ON: gradient of the loss with respect to the matrix's output there, by block, float32.
        fact_N: the fact that each answer token belongs to, ascending.
        loss: mean over the facts of the mean negative log-likelihood of the answer's tokens.
    """

    keys_IN: dict[int, Tensor]
    gradient_ON: dict[int, Tensor]
    fact_N: tuple[int, ...]
    loss: float


def answer_signals(model: EditableModel, facts: Sequence[Fact], *, token_budget: int = 16384) -> AnswerSignals:
    """Read keys and gradients of all edited matrices at the answers' tokens; the loss sums the facts' mean token losses.

    Args:
        model: with the weights on which they are read.
        facts: at least one.
        token_budget: padded tokens in a batch without gradients at most; a GPU with little room gets fewer.
    """
    rows = fact_rows(model, facts, ("",), targets=True)
    # What waits for gradients does so from the lowest edited block on.
    tokens = step_tokens(replace(model, layers=model.layers[:1]), token_budget)
    keys: dict[int, list[Tensor]] = {layer: [] for layer in model.layers}
    gradients: dict[int, list[Tensor]] = {layer: [] for layer in model.layers}
    owners: list[int] = []
    loss = 0.0
    for group in chunks_by_tokens([len(row.ids) for row in rows], tokens):
        # Ascending within the group, so that the tokens of one fact stay together.
        chosen = sorted(group)
        summed, read = _read(model, [rows[index] for index in chosen])
        loss += summed
        owners += [index for index in chosen for _ in rows[index].target_ids]
        for layer, (key_NI, gradient_NO) in read.items():
            keys[layer].append(key_NI)
            gradients[layer].append(gradient_NO)
    order = sorted(range(len(owners)), key=owners.__getitem__)
    return AnswerSignals(
        keys_IN={layer: torch.cat(parts)[order].T.contiguous() for layer, parts in keys.items()},
        gradient_ON={layer: torch.cat(parts)[order].T.contiguous() for layer, parts in gradients.items()},
        fact_N=tuple(owners[index] for index in order),
        loss=loss / len(facts),
    )


def _read(model: EditableModel, rows: Sequence[TokenRow]) -> tuple[float, dict[int, tuple[Tensor, Tensor]]]:
    """Return the summed loss of some rows, and by block the keys [N, I] and gradients [N, O] at their answers' tokens."""
    batch = make_batch([row.ids for row in rows], model.device)
    shape = batch.ids_BT.shape
    table = [
        (index, column - 1, row.ids[column], 1.0 / len(row.target_ids))
        for index, row in enumerate(rows)
        for column in range(row.target, len(row.ids))
    ]
    places_M2 = torch.tensor([entry[:2] for entry in table], device=model.device)
    expected_M = torch.tensor([entry[2] for entry in table], device=model.device)
    weight_M = torch.tensor([entry[3] for entry in table], device=model.device)
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            # The lowest edited matrix is where the graph begins: no weight asks for a gradient.
            output = output if output.requires_grad else output.detach().requires_grad_(True)
            inputs[layer], outputs[layer] = arguments[0].detach(), output
            return output

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(gathered_head(model, places_M2))
        stack.enter_context(recomputing(model, model.layers[0]))
        for layer in model.layers:
            stack.callback(model.matrix(layer).register_forward_hook(keep(layer)).remove)
        logits_MV = model.network(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
        ).logits[0]
        nll_M = torch.nn.functional.cross_entropy(logits_MV.float(), expected_M, reduction="none")
        loss = (nll_M * weight_M).sum()
        found = torch.autograd.grad(loss, [outputs[layer] for layer in model.layers])

    def at_places(values: Tensor) -> Tensor:
        # OPT flattens rows and columns before its MLP.
        return values.reshape(*shape, -1)[places_M2[:, 0], places_M2[:, 1]].float()

    return float(loss.detach()), {
        layer: (at_places(inputs[layer]), at_places(gradient))
        for layer, gradient in zip(model.layers, found, strict=True)
    }
