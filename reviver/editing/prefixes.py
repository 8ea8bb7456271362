"""Short texts that the model writes itself, put before a prompt so that an edit holds in more than one context."""

from __future__ import annotations

from reviver.editing.generation import sample
from reviver.editing.model import EditableModel
from reviver.editing.tokens import token_ids

OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""The first words of the prefixes (MEMIT, arXiv 2210.07229, and the code of its authors)."""


def write_prefixes(model: EditableModel, *, count: int, tokens: int, seed: int) -> tuple[str, ...]:
    """Return `count` prefixes of at most `tokens` tokens each, ending in a full stop and a space.

    The plain prompt, with nothing before it, is not among them.
    """
    if count == 0:
        return ()
    openings = [OPENINGS[index % len(OPENINGS)] for index in range(count)]
    prompts = token_ids(model.tokenizer, openings)
    written = sample(model, prompts, tokens=tokens, seed=seed)
    texts = []
    for prompt, ids in zip(prompts, written, strict=True):
        text = model.tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
        # A line break or a brace would change the prompt's form rather than its context.
        text = " ".join(text.replace("{", " ").replace("}", " ").split())
        texts.append(text.rstrip(".") + ". ")
    return tuple(texts)
