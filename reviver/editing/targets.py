"""Targets: the hidden state that makes the model say the new fact, found for many facts at once.

For each fact a shift δ of the output of the last edited block, at the subject's last token, is found by gradient descent
(MEMIT, arXiv 2210.07229, section 4.2; ROME, arXiv 2202.05262, equation 4): the mean over contexts of the target's negative
log-likelihood per token, plus a divergence that keeps what the subject is, plus a penalty on the shift's norm.

Legend: N facts, O hidden width, C closed directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from reviver.editing.beginnings import Beginnings
from reviver.editing.devices import free_memory
from reviver.editing.model import EditableModel
from reviver.editing.presets import Preset
from reviver.editing.search import FactRows, Search, group_facts
from reviver.editing.tokens import TokenRow, tokenize_rows
from reviver.editing.twins import Advance, run_at_once, work_at_once
from reviver.errors import NumericsError
from reviver.facts.fact import Fact, with_space
from reviver.progress import NullProgress, Progress, Task
from reviver.settings import TargetsSection
from reviver.spectral.factors import finite

_GRADIENT_SHARE = 16
"""A pass whose activations wait for gradients carries this part of the tokens that a passing one does."""
_FREE_SHARE = 0.6
"""The part of a GPU's free memory that these activations may take."""


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


def target_settings(wanted: TargetsSection, preset: Preset) -> TargetSettings:
    """Return how targets are sought: as the workspace wants it, and where it is silent as the preset has it."""

    def chosen(value: float | None, default: float) -> float:
        return default if value is None else value

    return TargetSettings(
        steps=wanted.steps or preset.steps,
        learning_rate=chosen(wanted.learning_rate, preset.learning_rate),
        clamp=chosen(wanted.clamp, preset.clamp),
        weight_decay=chosen(wanted.weight_decay, preset.weight_decay),
        kl=chosen(wanted.kl, preset.kl),
        stop_loss=wanted.stop_loss,
    )


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
    closed_OC: Tensor | None = None,
    progress: Progress | None = None,
) -> Targets:
    """Find the target of every fact; contexts are the plain prompt and one for each prefix.

    Args:
        model: the model, with the weights that the targets are sought on.
        facts: N facts.
        prefixes: texts before the prompt; the plain prompt is always the first context and need not be named.
        settings: steps, rates, weights.
        closed_OC: orthonormal directions of the states that no shift may have a part in, float32: there the last edited block
            cannot write.
        progress: told the number of facts that are done.

    Raises:
        NumericsError: a loss or a shift is not finite.
    """
    ranks = model.ranks
    ranks.tell(
        "targets",
        facts=[fact.to_record() for fact in facts],
        prefixes=list(prefixes),
        settings=asdict(settings),
        closed=0 if closed_OC is None else closed_OC.shape[1],
    )
    if closed_OC is not None:
        # What is spread is memory as it lies.
        closed_OC = closed_OC.contiguous()
        ranks.spread(closed_OC)
    tokens = _tokenize(model, facts, ("", *prefixes))
    # Dealt out in the order of their cost, so that every rank gets as much of it.
    order = sorted(range(len(facts)), key=lambda index: tokens[index].cost)
    share = ranks.share(order)
    found = [torch.zeros((0, model.outer_width(model.layers[-1])), device=model.device)]
    found += [torch.zeros(0, device=model.device), torch.zeros(0, dtype=torch.long, device=model.device)]
    with (progress or NullProgress()).task("targets", total=len(share), unit="facts") as task:
        if share:
            found = _search(model, [tokens[index] for index in share], settings, closed_OC, task)
    parts = ranks.gather(found)
    if ranks.leads:
        found = [torch.cat([part[index].to(model.device) for part in parts]) for index in range(3)]
        share = [index for rank in range(ranks.size) for index in order[rank :: ranks.size]]
    place_N = torch.tensor(share, device=model.device).argsort()
    target_NO, loss_N, steps_N = (values[place_N] for values in found)
    if not finite(target_NO, loss_N):
        raise NumericsError(
            "the search for targets went to NaN or infinity",
            hint="lower `learning_rate` under [targets] in `reviver.toml`, or compute in float32 with `--dtype float32`",
        )
    return Targets(target_NO=target_NO, loss_N=loss_N, steps_N=steps_N)


def _tokenize(model: EditableModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[FactRows]:
    rows = fact_rows(model, facts, contexts, targets=True)
    kl_rows = tokenize_rows(
        model.tokenizer,
        [f"{fact.subject} is a" for fact in facts],
        [""] * len(facts),
        [len(fact.subject) for fact in facts],
        window=model.window,
    )
    return [
        FactRows(tuple(rows[index * len(contexts) : (index + 1) * len(contexts)]), kl_rows[index])
        for index in range(len(facts))
    ]


def step_tokens(model: EditableModel, token_budget: int) -> int:
    """Return how many tokens a step of the search may carry: fewer where a GPU has no room for what waits for gradients."""
    tokens = max(1, token_budget // _GRADIENT_SHARE)
    free = free_memory(model.device) if model.device.type == "cuda" else None
    if free is None:
        return tokens
    return max(1, min(tokens, int(_FREE_SHARE * (free - coming_bytes(model)) / token_bytes(model))))


def coming_bytes(model: EditableModel) -> int:
    """Return the bytes of the largest block that comes to the device when it runs."""
    blocks = [model.blocks[index] for index in model.placement.away]
    return max((sum(one.numel() * one.element_size() for one in block.parameters()) for block in blocks), default=0)


def token_bytes(model: EditableModel) -> int:
    """Estimate the bytes that one token of a step keeps until its gradient is there: in every upper block, and in the head."""
    last = model.layers[-1]
    above = range(last + 1, len(model.blocks))
    # A block that does not lie on the device keeps what it is given, and all else only while it runs again.
    again = len(set(above).intersection(model.placement.away))
    running = len(above) - again + min(again, 1)
    # The two halves of a gated MLP and their product; norms in float32, attention and what it reads of the columns before.
    values = 3 * model.inner_width(last) + 20 * model.outer_width(last)
    vocabulary: int = model.network.get_output_embeddings().weight.shape[0]
    kept = running * values + again * model.outer_width(last)
    return kept * model.weight(last).element_size() + 8 * vocabulary


def _search(
    model: EditableModel,
    tokens: Sequence[FactRows],
    settings: TargetSettings,
    closed_OC: Tensor | None,
    task: Task,
) -> list[Tensor]:
    """Return target, loss and steps of every fact."""
    contexts = [*zip(*(fact.contexts for fact in tokens), strict=True), [fact.subject_is_a for fact in tokens]]
    beginnings = Beginnings(model, contexts)
    beginnings.reach(len(model.blocks) - 1)
    # Searches at once share what one may carry, so that memory does not depend on how many there are.
    budget = step_tokens(model, settings.token_budget) // work_at_once(model)
    groups = group_facts(tokens, budget, model.device)
    # The largest first, so that none is left alone at the end.
    groups.sort(key=lambda chosen: sum(tokens[index].tail for index in chosen), reverse=True)

    def search(own: EditableModel, chosen: Sequence[int], advance: Advance) -> tuple[Tensor, ...]:
        return Search(own, [tokens[index] for index in chosen], beginnings, settings, closed_OC).run(advance)

    found = run_at_once(model, search, groups, task.advance)
    place_N = torch.tensor([index for chosen in groups for index in chosen], device=model.device).argsort()
    return [torch.cat(parts)[place_N] for parts in zip(*found, strict=True)]
