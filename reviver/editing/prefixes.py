"""Short texts that the model writes itself, put before a prompt so that an edit holds in more than one context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from reviver.editing.model import EditableModel
from reviver.editing.tokens import make_batch

OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""The first words of the prefixes (MEMIT, arXiv 2210.07229, and the code of its authors)."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a generator seeded with `seed` for a while, and leave the caller's random state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def sample(
    model: EditableModel, prompts: Sequence[Sequence[int]], *, tokens: int, seed: int, top_k: int = 0
) -> list[list[int]]:
    """Return what the model writes after each prompt, sampled at temperature 1.

    Args:
        model: the model.
        prompts: token ids, not empty, one list a prompt.
        tokens: how many tokens to write, exactly; an end-of-text token does not end the writing.
        seed: of the draws.
        top_k: draw from so many of the most probable tokens; 0 draws from the whole distribution.
    """
    width = max(len(prompt) for prompt in prompts)
    batch = make_batch(prompts, model.device, align=[len(prompt) - 1 for prompt in prompts])
    with torch.no_grad(), seeded(seed, model.device):
        written = model.network.generate(
            input_ids=batch.ids_BT,
            attention_mask=batch.mask_BT,
            do_sample=True,
            temperature=1.0,
            top_k=top_k,
            top_p=1.0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
            eos_token_id=None,
        )
    return [row[width:].tolist() for row in written]


def write_prefixes(model: EditableModel, *, count: int, tokens: int, seed: int) -> tuple[str, ...]:
    """Return `count` prefixes of at most `tokens` tokens each, ending in a full stop and a space.

    The plain prompt, with nothing before it, is not among them.
    """
    if count == 0:
        return ()
    openings = [OPENINGS[index % len(OPENINGS)] for index in range(count)]
    prompts = [model.tokenizer(opening)["input_ids"] for opening in openings]
    written = sample(model, prompts, tokens=tokens, seed=seed)
    texts = []
    for prompt, ids in zip(prompts, written, strict=True):
        text = model.tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
        # A line break or a brace would change the prompt's form rather than its context.
        text = " ".join(text.replace("{", " ").replace("}", " ").split())
        texts.append(text.rstrip(".") + ". ")
    return tuple(texts)
