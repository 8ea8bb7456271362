"""What a model writes by itself: greedily, or sampled at temperature 1.

A checkpoint may ship with wishes for generation (`generation_config.json`: a repetition penalty, `min_p`, forbidden words, …),
which transformers takes up wherever a caller says nothing else. They are good for chatting; what is measured here is the
model itself, so that of them only the tokens that end a text count. The checkpoint's file is not touched.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reviver.editing.model import EditableModel
from reviver.editing.tokens import make_batch
from reviver.errors import NumericsError


def not_finite() -> NumericsError:
    """Return the error of a model whose logits are NaN or infinite."""
    return NumericsError(
        "the model answers with NaN or infinity",
        hint="compute in float32 with `--dtype float32`; if that does not help, the version is spoilt",
    )


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

    Raises:
        NumericsError: the model gives no probabilities.
    """
    with seeded(seed, model.device):
        return _write(model, prompts, tokens, do_sample=True, temperature=1.0, top_k=top_k, top_p=1.0)


def greedy(model: EditableModel, prompts: Sequence[Sequence[int]], *, tokens: int) -> list[list[int]]:
    """Return what the model writes after each prompt if every token is the most probable one.

    Args:
        model: the model.
        prompts: token ids, not empty, one list a prompt.
        tokens: how many tokens to write at most; a token that ends a text ends the writing and is left out.

    Raises:
        NumericsError: the model gives no probabilities.
    """
    ends = _end_tokens(model)
    written = _write(model, prompts, tokens, do_sample=False, eos_token_id=ends or None)
    lengths = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in written]
    return [row[:length] for row, length in zip(written, lengths, strict=True)]


def _end_tokens(model: EditableModel) -> list[int]:
    """Return the tokens that end a text of this model; chat models have several."""
    found = getattr(model.network.generation_config, "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _write(model: EditableModel, prompts: Sequence[Sequence[int]], tokens: int, **wanted: Any) -> list[list[int]]:
    """Return what `generate` adds to each prompt under the given options and no others."""
    from transformers import GenerationConfig, LogitsProcessorList

    batch = make_batch(prompts, model.device, align=[len(prompt) - 1 for prompt in prompts])
    own = model.network.generation_config
    # Also a configuration that is handed over has its gaps filled from the model's own.
    model.network.generation_config = GenerationConfig()
    try:
        with torch.no_grad():
            written = model.network.generate(
                input_ids=batch.ids_BT,
                attention_mask=batch.mask_BT,
                generation_config=GenerationConfig(max_new_tokens=tokens, pad_token_id=0, **wanted),
                logits_processor=LogitsProcessorList([_refuse_not_finite]),
            )
    finally:
        model.network.generation_config = own
    added: list[list[int]] = written[:, batch.ids_BT.shape[1] :].tolist()
    return added


def _refuse_not_finite(_ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
    """Raise where there are no probabilities to draw from; on a GPU the draw itself would end all further work there."""
    # The largest is NaN where any is; infinite where one is, or where none is possible.
    if not bool(torch.isfinite(logits_BV.amax(dim=-1)).all()):
        raise not_finite()
    return logits_BV
