"""The training corpus: facts and prose, mixed in small documents and packed into rows of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from reviver.demo.recipe.grammar import minimal_pairs
from reviver.demo.recipe.prose import Prose, held_out_documents
from reviver.demo.recipe.world import World, fact_sentences

# Half of the text are facts. More would make the facts the largest directions of the weights, which are the ones that
# the spectral filter protects, and nothing could be edited.
FACT_SHARE = 0.5
PAIRS_EACH = 50
HELD_OUT_DOCUMENTS = 300


def held_out_sentences(seed: int) -> set[str]:
    """Return every document and sentence that must not be trained on."""
    return {good for _, good, _ in minimal_pairs(seed, PAIRS_EACH)} | set(held_out_documents(seed, HELD_OUT_DOCUMENTS))


def documents(world: World, seed: int) -> Iterator[str]:
    """Yield documents without end, ``FACT_SHARE`` of the characters in documents about the world.

    Facts come in handfuls about different subjects, at times after a sentence of prose, so that the model knows them
    after any other text and not only at the start of a document.
    """
    rng = random.Random(f"documents {seed}")
    prose = Prose(rng)
    facts = fact_sentences(world, rng)
    kept_out = held_out_sentences(seed)
    fact_characters = characters = 0
    while True:
        about_facts = fact_characters <= FACT_SHARE * characters
        if about_facts:
            sentences = [next(facts) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
            if rng.random() < 0.15:
                sentences.insert(0, prose.sentences())
            document = " ".join(sentences)
        else:
            document = prose.document()
        if any(line in document for line in _suspects(document, kept_out)):
            continue
        fact_characters += len(document) * about_facts
        characters += len(document)
        yield document


def _suspects(document: str, kept_out: set[str]) -> list[str]:
    """Return the held-out texts that occur in ``document``, looking up each of its sentences and the whole."""
    parts = document.replace('."', '".').split(". ")
    candidates = {document, *(part if part.endswith(".") else f"{part}." for part in parts)}
    return [candidate for candidate in candidates if candidate in kept_out]


def rows(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int
) -> torch.Tensor:
    """Pack documents into ``count`` rows of ``length`` tokens.

    Each row begins with the token that begins every text, as it does when the model is used, and each document ends
    with the token that ends a text.
    """
    stream: list[int] = []
    wanted = count * (length - 1)
    while len(stream) < wanted:
        batch = [next(texts) for _ in range(2000)]
        for ids in tokenizer(batch)["input_ids"]:
            stream.extend(ids)
            stream.append(tokenizer.eos_token_id)
    body = torch.tensor(stream[:wanted], dtype=torch.int32).view(count, length - 1)
    start = torch.full((count, 1), tokenizer.bos_token_id, dtype=torch.int32)
    return torch.cat([start, body], dim=1)
