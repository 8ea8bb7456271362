"""What the freshly trained model knows: its facts, its grammar, and the prose it has never seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from reviver.demo.recipe.edits import EditRecord
from reviver.demo.recipe.grammar import minimal_pairs

BATCH = 128


@dataclass(frozen=True)
class Abilities:
    """Shares of right answers, and the perplexity of held-out prose."""

    prompts: float
    paraphrases: float
    neighbours: float
    perplexity: float
    pairs: float


class Reader:
    """Reads texts with the model in a folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def losses(self, texts: Sequence[str], continuations: Sequence[str]) -> list[tuple[float, int, bool]]:
        """Return, for each continuation of a text, its loss, its tokens, and whether greedy decoding would give it.

        Longest texts come first, so that a batch holds texts of much the same length and little padding.
        """
        results: list[tuple[float, int, bool]] = [(0.0, 0, False)] * len(texts)
        starts = [self.tokenizer(text)["input_ids"] for text in texts]
        ends = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in continuations]
        order = sorted(range(len(texts)), key=lambda index: -len(starts[index]) - len(ends[index]))
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            longest = max(len(starts[index]) + len(ends[index]) for index in chosen)
            tokens = torch.full((len(chosen), longest), self.tokenizer.pad_token_id)
            for row, index in enumerate(chosen):
                ids = starts[index] + ends[index]
                tokens[row, : len(ids)] = torch.tensor(ids)
            logits = self.model(input_ids=tokens).logits[:, :-1]
            loss = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
            right = logits.argmax(-1) == tokens[:, 1:]
            for row, index in enumerate(chosen):
                place = slice(len(starts[index]) - 1, len(starts[index]) + len(ends[index]) - 1)
                results[index] = (loss[row, place].sum().item(), len(ends[index]), bool(right[row, place].all()))
        return results

    def knows(self, prompts: Sequence[str], targets: Sequence[str]) -> list[bool]:
        """Tell for each prompt whether greedy decoding continues it with the target."""
        return [right for _, _, right in self.losses(prompts, [f" {target}" for target in targets])]

    def abilities(
        self, records: Sequence[EditRecord], seed: int, pairs_each: int, held_out: Sequence[str]
    ) -> Abilities:
        """Measure the model on the facts of ``records``, on the minimal pairs, and on held-out prose."""

        def share(prompts: list[str], targets: list[str]) -> float:
            known = self.knows(prompts, targets)
            return sum(known) / len(known)

        pairs = minimal_pairs(seed, pairs_each)
        empty = [""] * len(pairs)
        good = self.losses(empty, [right for _, right, _ in pairs])
        bad = self.losses(empty, [wrong for _, _, wrong in pairs])
        read = self.losses([""] * len(held_out), held_out)
        return Abilities(
            prompts=share(
                [record["prompt"].replace("{}", record["subject"]) for record in records],
                [record["target_true"] for record in records],
            ),
            paraphrases=share(
                [prompt for record in records for prompt in record["paraphrase_prompts"]],
                [record["target_true"] for record in records for _ in record["paraphrase_prompts"]],
            ),
            neighbours=share(
                [prompt for record in records for prompt in record["neighborhood_prompts"]],
                [record["target_true"] for record in records for _ in record["neighborhood_prompts"]],
            ),
            perplexity=math.exp(sum(loss for loss, _, _ in read) / sum(count for _, count, _ in read)),
            pairs=sum(right[0] < wrong[0] for right, wrong in zip(good, bad, strict=True)) / len(pairs),
        )
