"""The search for the shifts of some facts at once: one loss a fact, one step of Adam for all, the finished ones laid aside.

The mathematics is that of `targets`. What is done to make it fast, and what each brought on the packaged model with one CPU
thread (100 facts; the plain way of one fact at a time through the whole model takes 1.25 s a fact):

- all facts in batches, only the blocks above the edited ones from the subject's last token on: 0.30 s a fact;
- facts with tails of one length together, instead of sorted by whole length: less padding; the last token of a target, which
  predicts nothing, left out; the row of the divergence in a rectangle of its own, or read off the plain row where that
  begins with the subject: see the figures in `tests/benchmarks/results`.

On a GPU nothing within a step waits for the device: facts that are done are frozen by a mask, and only every few steps the
host asks which they are and drops their rows.

Legend: N facts, A facts still worked on, B rows, S columns from the subject's last token on, L places where logits are read, M
predictions of targets, K divergences, O hidden width, C closed directions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reviver.editing.beginnings import Beginnings
from reviver.editing.model import EditableModel
from reviver.editing.tokens import TokenRow, make_batch
from reviver.editing.upper import Upper

if TYPE_CHECKING:
    from reviver.editing.targets import TargetSettings

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class FactRows:
    """The tokens of one fact.

    Attributes:
        contexts: the prompt with the new target behind it, the plain context first.
        subject_is_a: "{subject} is a", for the divergence.
    """

    contexts: tuple[TokenRow, ...]
    subject_is_a: TokenRow

    @property
    def tail(self) -> int:
        """Columns from the subject's last token to the last one that predicts a token of the target."""
        plain = self.contexts[0]
        return len(plain.ids) - 1 - plain.subject

    @property
    def cost(self) -> tuple[int, int]:
        """What a step costs, and then what is computed once."""
        return self.tail, self.contexts[0].subject

    @property
    def begins_with_subject(self) -> bool:
        """Whether the plain row reads up to the subject's last token what the row of the divergence reads."""
        plain, other = self.contexts[0], self.subject_is_a
        return plain.ids[: plain.subject + 1] == other.ids[: other.subject + 1]


def call_tokens(device: torch.device) -> int:
    """Return how many tokens take as long as one more call of the upper blocks does, roughly."""
    return 32 if device.type == "cpu" else 256


def check_steps(device: torch.device) -> int:
    """Return after how many steps the host asks which facts are done; on a GPU asking means to wait for it."""
    return 1 if device.type == "cpu" else 4


def group_facts(facts: Sequence[FactRows], budget: int, device: torch.device) -> list[list[int]]:
    """Group facts for one search each, so that little is padding and no step carries more than `budget` tokens."""
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(facts)), key=lambda index: facts[index].cost):
        fact = facts[index]
        rows, tail = len(fact.contexts) + 1, fact.tail
        grown = (len(groups[-1]) + 1) * rows * tail if groups else 0
        tokens += rows * tail
        if not groups or grown > budget or grown - tokens > call_tokens(device):
            groups.append([])
            tokens = rows * tail
        groups[-1].append(index)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Rows that run together, and what is read of them.

    Attributes:
        upper: the blocks above, for these rows.
        fact_B: the fact of each row.
        places_L2: row and column of every place where logits are read.
        read_M, expected_M, weight_M, fact_M: the place of each prediction of a target's token, the token wanted there, its
            weight in the fact's loss, its fact.
        read_K, fact_K: the place of each divergence, its fact.
    """

    upper: Upper
    fact_B: Tensor
    places_L2: Tensor
    read_M: Tensor
    expected_M: Tensor
    weight_M: Tensor
    fact_M: Tensor
    read_K: Tensor
    fact_K: Tensor

    def select(self, kept_A: Tensor, count: int) -> _Part | None:
        """Return the part for some facts only, renumbered in the order of `kept_A`; None where none of them is in it."""
        fact_N = _renumbered(kept_A, count)
        rows_B = torch.nonzero(fact_N[self.fact_B] >= 0).squeeze(1)
        if not len(rows_B):
            return None
        row_R = _renumbered(rows_B, len(self.fact_B))
        places_L = torch.nonzero(row_R[self.places_L2[:, 0]] >= 0).squeeze(1)
        place_L = _renumbered(places_L, len(self.places_L2))
        places_L2 = self.places_L2[places_L]
        kept_M = torch.nonzero(fact_N[self.fact_M] >= 0).squeeze(1)
        kept_K = torch.nonzero(fact_N[self.fact_K] >= 0).squeeze(1)
        return _Part(
            upper=self.upper.select(rows_B),
            fact_B=fact_N[self.fact_B[rows_B]],
            places_L2=torch.stack([row_R[places_L2[:, 0]], places_L2[:, 1]], dim=1),
            read_M=place_L[self.read_M[kept_M]],
            expected_M=self.expected_M[kept_M],
            weight_M=self.weight_M[kept_M],
            fact_M=fact_N[self.fact_M[kept_M]],
            read_K=place_L[self.read_K[kept_K]],
            fact_K=fact_N[self.fact_K[kept_K]],
        )

    def logits(self, shift_AO: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the targets' places `[M, V]` and of the divergences' `[K, V]`, float32."""
        states_BSH = self.upper.states_BSH.clone()
        states_BSH[:, 0] += shift_AO[self.fact_B].to(states_BSH.dtype)
        logits_LV = self.upper.logits(states_BSH, self.places_L2).float()
        return logits_LV[self.read_M], logits_LV[self.read_K]


def _renumbered(kept: Tensor, count: int) -> Tensor:
    """Return for each of `count` numbers its place in `kept`, or -1."""
    number = torch.full((count,), -1, dtype=torch.long, device=kept.device)
    number[kept] = torch.arange(len(kept), device=kept.device)
    return number


class Search:
    """The search for the shifts of some facts.

    Args:
        model: with the weights that the targets are sought on.
        facts: N facts, with as many contexts each.
        beginnings: what the rows of each context begin with, those of "{subject} is a" last, reached up to the last block.
        settings: steps, rates, weights.
        closed_OC: orthonormal directions that no shift may have a part in; float32.
    """

    def __init__(
        self,
        model: EditableModel,
        facts: Sequence[FactRows],
        beginnings: Beginnings,
        settings: TargetSettings,
        closed_OC: Tensor | None = None,
    ) -> None:
        self._model = model
        self._beginnings = beginnings
        self._settings = settings
        self._closed_OC = closed_OC
        self._device = model.device
        count, contexts = len(facts), len(facts[0].contexts)
        own = [index for index, fact in enumerate(facts) if not fact.begins_with_subject]
        apart = len(own) * (max(fact.tail for fact in facts) - 1) > call_tokens(self._device)
        rows = [(index, context) for index in range(count) for context in range(contexts)]
        others = [(index, contexts) for index in own]
        self._parts = [self._part(facts, rows if apart else rows + others)]
        self._origin_NO = self._parts[0].upper.states_BSH[: count * contexts : contexts, 0].float()
        if apart:
            self._parts.append(self._part(facts, others))
        self._norm_N = self._origin_NO.norm(dim=1)
        vocabulary: int = model.network.get_output_embeddings().weight.shape[0]
        self._before_NV = torch.empty((count, vocabulary), device=self._device)

    def _part(self, facts: Sequence[FactRows], rows: Sequence[tuple[int, int]]) -> _Part:
        """Return a part of some rows, each given by its fact and context; one context more is "{subject} is a"."""
        contexts = len(facts[0].contexts)
        ids, subjects, targets, divergences = [], [], [], []
        places: dict[tuple[int, int], int] = {}
        for number, (fact, context) in enumerate(rows):
            start = self._beginnings.lengths[context]
            if context == contexts:
                row = facts[fact].subject_is_a
                ids.append(row.ids[start : row.subject + 1])
                divergences.append((places.setdefault((number, 0), len(places)), fact))
            else:
                row = facts[fact].contexts[context]
                # What the last token of a target predicts is not asked for.
                ids.append(row.ids[start:-1])
                for column in range(row.target, len(row.ids)):
                    place = places.setdefault((number, column - 1 - row.subject), len(places))
                    targets.append((place, row.ids[column], 1.0 / (contexts * len(row.target_ids)), fact))
                if context == 0 and facts[fact].begins_with_subject:
                    divergences.append((places.setdefault((number, 0), len(places)), fact))
            subjects.append(row.subject - start)
        starts = [self._beginnings.lengths[context] for _, context in rows]
        batch = make_batch(ids, self._device, align=subjects, starts=starts)
        blocks = len(self._model.blocks)
        past = self._beginnings.past([context for _, context in rows], 0, blocks - 1)
        return _Part(
            upper=Upper.compute(self._model, batch, self._model.layers[-1], max(subjects), past=past),
            fact_B=self._long([fact for fact, _ in rows]),
            places_L2=self._long(list(places)),
            read_M=self._long([entry[0] for entry in targets]),
            expected_M=self._long([entry[1] for entry in targets]),
            weight_M=torch.tensor([entry[2] for entry in targets], device=self._device),
            fact_M=self._long([entry[3] for entry in targets]),
            read_K=self._long([entry[0] for entry in divergences]),
            fact_K=self._long([entry[1] for entry in divergences]),
        )

    def _long(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def run(self, advance: Callable[[float], None]) -> tuple[Tensor, Tensor, Tensor]:
        """Search until every fact is done or has used its steps.

        Args:
            advance: told with every step how many facts came to their end; what it raises ends the search.

        Returns:
            Targets `[N, O]`, the loss of each where it was last evaluated, and how many times it was; NaN where a loss was not
            finite.
        """
        settings = self._settings
        check = check_steps(self._device)
        shift_NO = torch.zeros_like(self._origin_NO)
        loss_N = torch.full_like(self._norm_N, float("inf"))
        steps_N = torch.zeros(len(loss_N), dtype=torch.long, device=self._device)
        parts, index_A = self._parts, torch.arange(len(loss_N), device=self._device)
        shift_AO, first_AO, second_AO = (torch.zeros_like(shift_NO) for _ in range(3))
        going_A = torch.ones_like(index_A, dtype=torch.bool)
        for step in range(1, settings.steps + 1):
            advance(0)
            shift_AO = shift_AO.detach().requires_grad_(True)
            loss_A = self._loss(parts, shift_AO, index_A, first=step == 1)
            known_A = loss_A.detach()
            loss_N[index_A] = torch.where(going_A, known_A, loss_N[index_A])
            steps_N[index_A] += going_A
            finite_A = torch.isfinite(known_A)
            # A loss that is not finite ends the search for its fact; the caller sees the NaN and refuses. What a fact had when
            # it was done stays, for the host drops its rows only steps later.
            found_AO = torch.where(finite_A[:, None], shift_AO.detach(), float("nan"))
            shift_NO[index_A] = torch.where(going_A[:, None], found_AO, shift_NO[index_A])
            going_A = going_A & finite_A & (known_A >= settings.stop_loss)
            kept_A = torch.nonzero(going_A).squeeze(1) if step % check == 0 else None
            if step == settings.steps or (kept_A is not None and not len(kept_A)):
                break
            (gradient_AO,) = torch.autograd.grad(loss_A.sum(), shift_AO)
            gradient_AO = self._open(gradient_AO)
            first_AO = _BETA_1 * first_AO + (1 - _BETA_1) * gradient_AO
            second_AO = _BETA_2 * second_AO + (1 - _BETA_2) * gradient_AO**2
            change_AO = (first_AO / (1 - _BETA_1**step)) / ((second_AO / (1 - _BETA_2**step)).sqrt() + _EPSILON)
            # Adam scales every coordinate by itself, which leads out of any subspace.
            moved_AO = self._open(shift_AO.detach() - settings.learning_rate * change_AO)
            limit_A = settings.clamp * self._norm_N[index_A]
            moved_AO *= (limit_A / moved_AO.norm(dim=1).clamp(min=1e-20)).clamp(max=1.0)[:, None]
            shift_AO = torch.where(going_A[:, None], moved_AO, shift_AO.detach())
            if kept_A is not None and len(kept_A) < len(index_A):
                advance(len(index_A) - len(kept_A))
                index_A, going_A = index_A[kept_A], going_A[kept_A]
                shift_AO, first_AO, second_AO = shift_AO[kept_A], first_AO[kept_A], second_AO[kept_A]
                narrowed = [part.select(index_A, len(loss_N)) for part in self._parts]
                parts = [part for part in narrowed if part is not None]
        advance(len(index_A))
        return self._origin_NO + shift_NO, loss_N, steps_N

    def _open(self, vectors_AO: Tensor) -> Tensor:
        """Return what vectors have outside the closed directions."""
        if self._closed_OC is None:
            return vectors_AO
        return vectors_AO - (vectors_AO @ self._closed_OC) @ self._closed_OC.T

    def _loss(self, parts: Sequence[_Part], shift_AO: Tensor, index_A: Tensor, *, first: bool) -> Tensor:
        """Return the loss `[A]` of every fact that is still worked on; at first, where no shift is, note what must not diverge."""
        settings = self._settings
        # The norm has no gradient at zero; a shift of zero must stay a valid starting point.
        size_A = (shift_AO.pow(2).sum(1) + 1e-24).sqrt()
        loss_A: Tensor = settings.weight_decay * size_A / self._norm_N[index_A] ** 2
        for part in parts:
            target_MV, after_KV = part.logits(shift_AO)
            if len(target_MV):
                nll_M = torch.nn.functional.cross_entropy(target_MV, part.expected_M, reduction="none")
                loss_A = loss_A.index_add(0, part.fact_M, nll_M * part.weight_M)
            if len(after_KV):
                after_KV = torch.log_softmax(after_KV, dim=-1)
                if first:
                    self._before_NV[part.fact_K] = after_KV.detach()
                before_KV = self._before_NV[index_A[part.fact_K]]
                divergence_K = (after_KV.exp() * (after_KV - before_KV)).sum(1)
                loss_A = loss_A.index_add(0, part.fact_K, settings.kl * divergence_K)
        return loss_A
