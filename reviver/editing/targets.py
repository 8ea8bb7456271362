"""Targets: the hidden state that makes the model say the new fact, found for many facts at once.

For each fact a shift δ of the output of the last edited block, at the subject's last token, is found by gradient descent
(MEMIT, arXiv 2210.07229, section 4.2; ROME, arXiv 2202.05262, equation 4): the mean over contexts of the target's negative
log-likelihood per token, plus a divergence that keeps what the subject is, plus a penalty on the shift's norm.

Legend: N facts, R rows (fact and context), O hidden width, S columns from the subject's last token on, M places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reviver.editing.model import EditableModel
from reviver.editing.propagation import Upper
from reviver.editing.tokens import TokenRow, make_batch, tokenize_rows
from reviver.errors import NumericsError
from reviver.facts.fact import Fact, with_space
from reviver.progress import NullProgress, Progress

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """How targets are sought.

    Attributes:
        steps: evaluations of the loss at most.
        learning_rate: of Adam.
        clamp: largest norm of the shift, relative to the norm of the hidden state.
        weight_decay: weight of `‖δ‖ / ‖h‖²` in the loss.
        kl: weight of the divergence at the subject's last token of "{subject} is a".
        stop_loss: a fact whose loss is below this is done.
        token_budget: padded tokens in one batch at most; only memory and speed depend on it.
    """

    steps: int
    learning_rate: float
    clamp: float
    weight_decay: float
    kl: float
    stop_loss: float = 0.05
    token_budget: int = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What was found for N facts.

    Attributes:
        target_NO: float32, the hidden states z to reach.
        loss_N: the loss of each at the end.
        steps_N: how many times the loss of each was evaluated.
    """

    target_NO: Tensor
    loss_N: Tensor
    steps_N: Tensor


def fact_rows(model: EditableModel, facts: Sequence[Fact], prefixes: Sequence[str], *, targets: bool) -> list[TokenRow]:
    """Tokenise every fact under every context, facts outermost, with or without the new target behind the prompt."""
    prompts, continuations, ends = [], [], []
    for fact in facts:
        for prefix in prefixes:
            prompts.append(prefix + fact.text)
            continuations.append(with_space(fact.target_new, fact.text) if targets else "")
            ends.append(len(prefix) + fact.subject_start + len(fact.subject))
    return tokenize_rows(model.tokenizer, prompts, continuations, ends, window=model.window)


def find_targets(
    model: EditableModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    settings: TargetSettings,
    *,
    progress: Progress | None = None,
) -> Targets:
    """Find the target of every fact; contexts are the plain prompt and one for each prefix.

    Args:
        model: the model, with the weights that the targets are sought on.
        facts: N facts.
        prefixes: texts before the prompt; the plain prompt is always the first context and need not be named.
        settings: steps, rates, weights.
        progress: told the number of facts that are done.

    Raises:
        NumericsError: a loss or a shift is not finite.
    """
    contexts = ("", *prefixes)
    rows = fact_rows(model, facts, contexts, targets=True)
    kl_rows = tokenize_rows(
        model.tokenizer,
        [f"{fact.subject} is a" for fact in facts],
        [""] * len(facts),
        [len(fact.subject) for fact in facts],
        window=model.window,
    )
    hidden = model.network.get_input_embeddings().weight.shape[1]
    target_NO = torch.zeros((len(facts), hidden), dtype=torch.float32, device=model.device)
    loss_N = torch.zeros(len(facts), dtype=torch.float32, device=model.device)
    steps_N = torch.zeros(len(facts), dtype=torch.long, device=model.device)
    with (progress or NullProgress()).task("targets", total=len(facts), unit="facts") as task:
        for chosen in _fact_chunks(rows, kl_rows, len(contexts), settings.token_budget):
            chunk_rows = [rows[fact * len(contexts) + context] for fact in chosen for context in range(len(contexts))]
            search = _Search(model, chunk_rows, [kl_rows[fact] for fact in chosen], len(contexts), settings)
            search.run(task.advance)
            index = torch.tensor(chosen, device=model.device)
            target_NO[index] = search.origin_NO + search.shift_NO
            loss_N[index] = search.loss_N
            steps_N[index] = search.steps_N
    if not bool(torch.isfinite(target_NO).all()):
        raise NumericsError(
            "the search for targets went to NaN or infinity",
            hint="lower `learning_rate` under [targets] in `reviver.toml`, or compute in float32 with `--dtype float32`",
        )
    return Targets(target_NO=target_NO, loss_N=loss_N, steps_N=steps_N)


def _fact_chunks(rows: Sequence[TokenRow], kl_rows: Sequence[TokenRow], contexts: int, budget: int) -> list[list[int]]:
    """Group facts of like length so that the padded rectangle of each group keeps within the token budget."""
    sizes = []
    for fact in range(len(kl_rows)):
        own = [*rows[fact * contexts : (fact + 1) * contexts], kl_rows[fact]]
        sizes.append((max(row.subject for row in own), max(len(row.ids) - row.subject for row in own)))
    groups: list[list[int]] = []
    widest = (0, 0)
    for fact in sorted(range(len(sizes)), key=lambda index: sum(sizes[index])):
        grown = (max(widest[0], sizes[fact][0]), max(widest[1], sizes[fact][1]))
        if not groups or (len(groups[-1]) + 1) * (contexts + 1) * sum(grown) > budget:
            groups.append([])
            grown = sizes[fact]
        groups[-1].append(fact)
        widest = grown
    return groups


class _Search:
    """The search for the shifts of one chunk of facts."""

    def __init__(
        self,
        model: EditableModel,
        rows: Sequence[TokenRow],
        kl_rows: Sequence[TokenRow],
        contexts: int,
        settings: TargetSettings,
    ) -> None:
        self.settings = settings
        self.device = model.device
        count = len(kl_rows)
        # The row for the divergence needs nothing behind the subject's last token.
        ids = [row.ids for row in rows] + [row.ids[: row.subject + 1] for row in kl_rows]
        places = [row.subject for row in rows] + [row.subject for row in kl_rows]
        batch = make_batch(ids, model.device, align=places)
        self.upper = Upper.compute(model, batch, model.layers[-1], max(places))
        fact_of_row = [index // contexts for index in range(len(rows))] + list(range(count))
        self.fact_R = torch.tensor(fact_of_row, device=self.device)
        self.origin_NO = self.upper.states_BSH[: len(rows) : contexts, 0].float()
        self.norm_N = self.origin_NO.norm(dim=1)
        table = [
            (index, column - 1 - row.subject, row.ids[column], 1.0 / (contexts * len(row.target_ids)))
            for index, row in enumerate(rows)
            for column in range(row.target, len(row.ids))
        ]
        self.places_M2 = torch.tensor([entry[:2] for entry in table], device=self.device)
        self.expected_M = torch.tensor([entry[2] for entry in table], device=self.device)
        self.weight_M = torch.tensor([entry[3] for entry in table], device=self.device)
        self.kl_places_N2 = torch.tensor([(len(rows) + index, 0) for index in range(count)], device=self.device)
        with torch.no_grad():
            before = self.upper.logits(self.upper.states_BSH, self.kl_places_N2).float()
        self.before_NV = torch.log_softmax(before, dim=-1)
        self.shift_NO = torch.zeros_like(self.origin_NO)
        self.loss_N = torch.full((count,), float("inf"), device=self.device)
        self.steps_N = torch.zeros(count, dtype=torch.long, device=self.device)

    def run(self, advance: Callable[[float], None]) -> None:
        """Search until every fact is done or has used its steps."""
        settings = self.settings
        first_NO, second_NO = torch.zeros_like(self.shift_NO), torch.zeros_like(self.shift_NO)
        active_A = torch.arange(len(self.loss_N), device=self.device)
        view = self._view(active_A)
        for step in range(1, settings.steps + 1):
            shift_AO = self.shift_NO[active_A].requires_grad_(True)
            loss_A = self._loss(view, shift_AO, active_A)
            self.loss_N[active_A] = loss_A.detach()
            self.steps_N[active_A] += 1
            # A loss that is not finite ends the search for its fact; the caller sees the NaN and refuses.
            going_A = loss_A.detach() >= settings.stop_loss
            self.shift_NO[active_A[~torch.isfinite(loss_A.detach())]] = float("nan")
            if step == settings.steps or not bool(going_A.any()):
                break
            (gradient_AO,) = torch.autograd.grad(loss_A.sum(), shift_AO)
            first_AO = _BETA_1 * first_NO[active_A] + (1 - _BETA_1) * gradient_AO
            second_AO = _BETA_2 * second_NO[active_A] + (1 - _BETA_2) * gradient_AO**2
            change_AO = (first_AO / (1 - _BETA_1**step)) / ((second_AO / (1 - _BETA_2**step)).sqrt() + _EPSILON)
            moved_AO = shift_AO.detach() - settings.learning_rate * change_AO
            limit_A = settings.clamp * self.norm_N[active_A]
            moved_AO *= (limit_A / moved_AO.norm(dim=1).clamp(min=1e-20)).clamp(max=1.0)[:, None]
            first_NO[active_A], second_NO[active_A] = first_AO, second_AO
            still_A = active_A[going_A]
            self.shift_NO[still_A] = moved_AO[going_A]
            if len(still_A) < len(active_A):
                advance(len(active_A) - len(still_A))
                active_A = still_A
                view = self._view(active_A)
        advance(len(active_A))

    def _view(self, active_A: Tensor) -> _View:
        """Return rows and places of the facts that are still being worked on."""
        slot_N = torch.full((len(self.loss_N),), -1, dtype=torch.long, device=self.device)
        slot_N[active_A] = torch.arange(len(active_A), device=self.device)
        rows_B = torch.nonzero(slot_N[self.fact_R] >= 0).squeeze(1)
        new_row_R = torch.full((len(self.fact_R),), -1, dtype=torch.long, device=self.device)
        new_row_R[rows_B] = torch.arange(len(rows_B), device=self.device)
        kept_M = new_row_R[self.places_M2[:, 0]] >= 0
        places_M2 = self.places_M2[kept_M]
        kl_places_A2 = self.kl_places_N2[active_A]
        both = torch.cat([places_M2, kl_places_A2])
        return _View(
            upper=self.upper.select(rows_B),
            slot_B=slot_N[self.fact_R[rows_B]],
            places_M2=torch.stack([new_row_R[both[:, 0]], both[:, 1]], dim=1),
            expected_M=self.expected_M[kept_M],
            weight_M=self.weight_M[kept_M],
            slot_M=slot_N[self.fact_R[places_M2[:, 0]]],
        )

    def _loss(self, view: _View, shift_AO: Tensor, active_A: Tensor) -> Tensor:
        """Return the loss `[A]` of every active fact."""
        settings = self.settings
        states_BSH = view.upper.states_BSH.clone()
        states_BSH[:, 0] += shift_AO[view.slot_B].to(states_BSH.dtype)
        logits_MV = view.upper.logits(states_BSH, view.places_M2).float()
        targets = len(view.expected_M)
        nll_M = torch.nn.functional.cross_entropy(logits_MV[:targets], view.expected_M, reduction="none")
        loss_A = torch.zeros(len(active_A), device=self.device).index_add(0, view.slot_M, nll_M * view.weight_M)
        after_AV = torch.log_softmax(logits_MV[targets:], dim=-1)
        divergence_A = (after_AV.exp() * (after_AV - self.before_NV[active_A])).sum(1)
        # The norm has no gradient at zero; a shift of zero must stay a valid starting point.
        size_A = (shift_AO.pow(2).sum(1) + 1e-24).sqrt()
        decay_A = size_A / self.norm_N[active_A] ** 2
        total_A: Tensor = loss_A + settings.kl * divergence_A + settings.weight_decay * decay_A
        return total_A


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """The rows and places of the facts that are still being worked on; A counts those facts.

    Attributes:
        upper: the blocks above, for these rows only.
        slot_B: which active fact each row belongs to.
        places_M2: places of the targets' tokens, then of the divergence rows.
        expected_M, weight_M, slot_M: the token wanted at each of the former, its weight in the loss, its active fact.
    """

    upper: Upper
    slot_B: Tensor
    places_M2: Tensor
    expected_M: Tensor
    weight_M: Tensor
    slot_M: Tensor
