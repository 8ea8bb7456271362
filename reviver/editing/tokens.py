"""From text to rows of tokens: where the subject ends, where the target begins, and rows padded so that they line up.

All places are found by character offsets of the whole text, never by counting the tokens of a part alone: a tokenizer may
join what is written together.

Legend: B rows, T tokens of a row, C the column of the subject's last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reviver.errors import FactsError, UnsupportedModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One tokenised text.

    Attributes:
        ids: token ids, with the special tokens that the tokenizer puts before a text and without those that it puts behind one.
        subject: index of the subject's last token (0 where the text has no subject).
        target: index of the first token of the continuation; `len(ids)` where there is none.
    """

    ids: tuple[int, ...]
    subject: int
    target: int

    @property
    def target_ids(self) -> tuple[int, ...]:
        """The tokens of the continuation."""
        return self.ids[self.target :]


def check_tokenizer(tokenizer: Any) -> None:
    """Raise unless the tokenizer can say where in the text its tokens come from.

    Raises:
        UnsupportedModelError: it is not a fast tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            "the model's tokenizer cannot tell the offsets of its tokens",
            hint="the checkpoint needs a `tokenizer.json`; convert its tokenizer with transformers first",
        )


def tokenize_rows(
    tokenizer: Any,
    prompts: Sequence[str],
    continuations: Sequence[str],
    subject_ends: Sequence[int] | None = None,
    *,
    window: int,
) -> list[TokenRow]:
    """Tokenise prompts with their continuations.

    Args:
        tokenizer: the model's fast tokenizer.
        prompts: one text a row.
        continuations: what follows each prompt, its leading space included; may be empty.
        subject_ends: character index just behind the subject in each prompt, where there is one.
        window: tokens that the model can read at most.

    Raises:
        FactsError: a row is longer than the model's window or a place in it cannot be found.
    """
    if not prompts:
        return []
    texts = [prompt + continuation for prompt, continuation in zip(prompts, continuations, strict=True)]
    rows = []
    for index, (ids, offsets) in enumerate(_encoded(tokenizer, texts)):
        target = _first_token_beyond(offsets, len(prompts[index])) if continuations[index] else len(ids)
        subject = 0 if subject_ends is None else _last_token_before(offsets, subject_ends[index])
        if subject_ends is not None and not 0 <= subject < target:
            raise FactsError(
                f"the subject's tokens cannot be told from what follows them in {ascii(texts[index])[:80]}",
                hint="write the prompt so that the subject stands before the object, apart from it",
            )
        if continuations[index] and not 0 < target < len(ids):
            raise FactsError(
                f"the tokenizer gives no tokens for what follows the prompt in {ascii(texts[index])[:80]}",
                hint="correct the fact, or set it aside",
            )
        if len(ids) > window:
            raise FactsError(
                f"a text of {len(ids)} tokens is longer than the model's window of {window}: {ascii(texts[index])[:60]}",
                hint="shorten the prompt",
            )
        rows.append(TokenRow(ids=tuple(ids), subject=subject, target=target))
    return rows


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of some texts, each to be gone on with."""
    return [ids for ids, _ in _encoded(tokenizer, texts)] if texts else []


def _encoded(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Yield ids and character offsets of each text, less the special tokens that some tokenizers close a text with.

    Behind a target they would be asked for as a part of it, behind a prompt the model would take the text for finished.
    """
    encoded = tokenizer(list(texts), return_offsets_mapping=True, padding=False, truncation=False)
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # Special tokens come from nowhere in the text: (0, 0). A text of no other tokens keeps them.
        last = max((place for place, (_, stop) in enumerate(offsets) if stop), default=len(ids) - 1)
        yield ids[: last + 1], offsets[: last + 1]


def _last_token_before(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """Return the last token that begins before character `end`; -1 where there is none.

    Several tokens may share the offsets of one character (bytes of a letter): the last of them is meant. Special tokens
    have empty offsets and never count.
    """
    found = -1
    for index, (start, stop) in enumerate(offsets):
        if start < end and stop > start:
            found = index
    return found


def _first_token_beyond(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """Return the first token that reaches beyond character `end`: where the continuation begins.

    A token of spaces alone may have empty offsets, behind its spaces, where a tokenizer trims them. Special tokens have (0, 0).
    """
    for index, (_, stop) in enumerate(offsets):
        if stop > end:
            return index
    return len(offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of tokens padded to one rectangle.

    Attributes:
        ids_BT: token ids, padding anywhere the mask is 0.
        mask_BT: 1 where there is a token.
        positions_BT: position of each token in its own row.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    positions_BT: Tensor

    def columns(self, start: int, stop: int | None = None) -> Batch:
        """Return the columns from `start` to before `stop`."""
        return Batch(
            ids_BT=self.ids_BT[:, start:stop],
            mask_BT=self.mask_BT[:, start:stop],
            positions_BT=self.positions_BT[:, start:stop],
        )

    def rows(self, chosen_B: Tensor) -> Batch:
        """Return some rows, by index."""
        return Batch(
            ids_BT=self.ids_BT[chosen_B], mask_BT=self.mask_BT[chosen_B], positions_BT=self.positions_BT[chosen_B]
        )


def make_batch(
    rows: Sequence[Sequence[int]],
    device: torch.device,
    *,
    align: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
    pad: int = 0,
) -> Batch:
    """Pad rows into one batch.

    Args:
        rows: token ids of each row.
        device: where the tensors shall lie.
        align: an index in each row; the rows are shifted so that these tokens share one column. Without it, rows begin in the
            first column.
        starts: the position of each row's first token, where it is not 0.
        pad: token id that fills the gaps; it is masked, so its value does not matter.
    """
    column = max(align) if align is not None else 0
    shifts = [column - index for index in align] if align is not None else [0] * len(rows)
    width = max(shift + len(row) for shift, row in zip(shifts, rows, strict=True))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        ids[index, shift : shift + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, shift : shift + len(row)] = 1
    positions = mask.cumsum(1) - 1
    if starts is not None:
        positions += torch.tensor(starts, dtype=torch.long)[:, None]
    return Batch(
        ids_BT=ids.to(device),
        mask_BT=mask.to(device),
        positions_BT=positions.clamp(min=0).to(device),
    )


def chunks_by_tokens(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield groups of row indices whose padded rectangles hold at most `budget` tokens, rows of like length together."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * lengths[index] > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
