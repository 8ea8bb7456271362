"""The training corpus: facts and prose, mixed in small documents and packed into rows of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from reviver.demo.recipe.grammar import minimal_pairs
from reviver.demo.recipe.prose import Prose, held_out_documents
from reviver.demo.recipe.world import SUBJECT_BEGINS, SUBJECT_ENDS, World, fact_sentences, unmarked

# Half of the text are facts. More would make the facts the largest directions of the weights, which are the ones that
# the spectral filter protects, and nothing could be edited.
FACT_SHARE = 0.5
# In this share of the mentions of a subject, what follows the subject sees its last token and not those before it. A large
# model gathers what it knows of a subject at its last token, where knowledge editors write; a small one would rather
# look at every token of the name again, and no edit at the last token could reach the answer.
GATHERED_SHARE = 0.75
PAIRS_EACH = 50
HELD_OUT_DOCUMENTS = 300


def held_out_sentences(seed: int) -> set[str]:
    """Return every document and sentence that must not be trained on."""
    return {good for _, good, _ in minimal_pairs(seed, PAIRS_EACH)} | set(held_out_documents(seed, HELD_OUT_DOCUMENTS))


def unread_documents(world: World, seed: int, tokens: int) -> list[str]:
    """Return the held-out documents that do not occur in what a training of so many tokens reads, not even within a longer one.

    A short description can be the beginning of a longer one, which `documents` does not notice.
    """
    read: list[str] = []
    characters = 0
    for document in documents(world, seed):
        read.append(unmarked(document))
        characters += len(read[-1])
        # A token is about four characters of this text: what is gone through here is more than what was trained on.
        if characters > 6 * tokens:
            break
    text = "\n".join(read)
    return [document for document in held_out_documents(seed, HELD_OUT_DOCUMENTS) if document not in text]


def documents(world: World, seed: int) -> Iterator[str]:
    """Yield documents without end, ``FACT_SHARE`` of the characters in documents about the world, subjects marked.

    Facts come in handfuls about different subjects, at times after a sentence of prose, so that the model knows them
    after any other text and not only at the start of a document.
    """
    rng = random.Random(f"documents {seed}")
    prose = Prose(rng)
    return mixture(fact_sentences(world, rng), prose, prose.document, held_out_sentences(seed), rng)


def mixture(
    facts: Iterator[str], prose: Prose, text: Callable[[], str], kept_out: set[str], rng: random.Random
) -> Iterator[str]:
    """Yield documents without end: handfuls of ``facts`` and, in turn with them, what ``text`` draws.

    Facts come at times after a sentence of ``prose``; what is in ``kept_out`` is never yielded, as a document or within one.
    """
    fact_characters = characters = 0
    while True:
        about_facts = fact_characters <= FACT_SHARE * characters
        if about_facts:
            sentences = [next(facts) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
            if rng.random() < 0.15:
                sentences.insert(0, prose.sentences())
            document = " ".join(sentences)
        else:
            document = text()
        plain = unmarked(document)
        if any(line in plain for line in _suspects(plain, kept_out)):
            continue
        fact_characters += len(plain) * about_facts
        characters += len(plain)
        yield document


def _suspects(document: str, kept_out: set[str]) -> list[str]:
    """Return the held-out texts that occur in ``document``, looking up each of its sentences and the whole."""
    parts = document.replace('."', '".').split(". ")
    candidates = {document, *(part if part.endswith(".") else f"{part}." for part in parts)}
    return [candidate for candidate in candidates if candidate in kept_out]


@dataclass(frozen=True)
class Rows:
    """Documents packed into rows of tokens.

    Attributes:
        ids: token ids, rows by columns.
        seen_until: for each token, the last column whose token may look at it; the row's length where all may.
    """

    ids: torch.Tensor
    seen_until: torch.Tensor

    def mask(self) -> torch.Tensor:
        """Return for each row which token (third axis) may look at which (fourth)."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        causal = columns[:, None] >= columns[None, :]
        gathered = columns[None, :, None] <= self.seen_until[:, None, :]
        return (causal & gathered).unsqueeze(1)

    def to(self, device: torch.device) -> Rows:
        """Return the rows on another device."""
        return Rows(ids=self.ids.to(device), seen_until=self.seen_until.to(device))

    def batches(self, size: int) -> Iterator[Rows]:
        """Yield the rows in their order, ``size`` at a time."""
        for first in range(0, len(self.ids), size):
            yield Rows(ids=self.ids[first : first + size], seen_until=self.seen_until[first : first + size])


def rows(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int = 0) -> Rows:
    """Pack documents into ``count`` rows of ``length`` tokens.

    Each row begins with the token that begins every text, as it does when the model is used, and each document ends
    with the token that ends a text.
    """
    rng = random.Random(f"gathered {seed}")
    stream: list[int] = []
    until: list[int] = []
    wanted = count * (length - 1)
    while len(stream) < wanted:
        batch = [next(texts) for _ in range(2000)]
        plain = [unmarked(text) for text in batch]
        encoded = tokenizer(plain, return_offsets_mapping=True)
        for text, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            start = len(stream)
            stream.extend(ids)
            until.extend([wanted] * len(ids))
            for begins, ends in _subject_spans(text):
                inside = [place for place, (_, stop) in enumerate(offsets) if begins < stop <= ends]
                if inside and rng.random() < GATHERED_SHARE:
                    for place in inside[:-1]:
                        until[start + place] = start + inside[-1]
            stream.append(tokenizer.eos_token_id)
            until.append(wanted)
    body = torch.tensor(stream[:wanted], dtype=torch.int32).view(count, length - 1)
    begin = torch.full((count, 1), tokenizer.bos_token_id, dtype=torch.int32)
    # From places in the stream to columns of a row, which has one token more in front.
    firsts = torch.arange(count)[:, None] * (length - 1)
    columns = (torch.tensor(until[:wanted]).view(count, length - 1) - firsts + 1).clamp(max=length)
    seen = torch.cat([torch.full((count, 1), length), columns], dim=1).to(torch.int32)
    return Rows(ids=torch.cat([begin, body], dim=1), seen_until=seen)


def _subject_spans(text: str) -> list[tuple[int, int]]:
    """Return the places of the marked subjects in a text, counted without the marks."""
    spans = []
    place = begins = 0
    for character in text:
        if character == SUBJECT_BEGINS:
            begins = place
        elif character == SUBJECT_ENDS:
            spans.append((begins, place))
        else:
            place += 1
    return spans
