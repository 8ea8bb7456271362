"""What many rows begin with, computed once for all of them: the same prefix stands before every prompt of a round.

Legend: C contexts, P columns of the beginnings, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reviver.editing.model import EditableModel
from reviver.editing.propagation import KeysValues, Past, keys_and_values
from reviver.editing.tokens import TokenRow, make_batch


class Beginnings:
    """The tokens that all rows of a context begin with, and the keys and values that the blocks have for them.

    Args:
        model: the model.
        contexts: the rows of each context.

    Attributes:
        lengths: how many tokens the rows of each context share, short of the first subject's last token.
    """

    def __init__(self, model: EditableModel, contexts: Sequence[Sequence[TokenRow]]) -> None:
        self.model = model
        self.lengths = tuple(_shared(rows) for rows in contexts)
        longest = max(len(row.ids) for rows in contexts for row in rows)
        if longest + max(self.lengths) > _sliding_window(model):
            # Rows of unlike length have a gap behind their beginning, which a sliding window would count as tokens.
            self.lengths = (0,) * len(contexts)
        ids = [rows[0].ids[:length] for rows, length in zip(contexts, self.lengths, strict=True)]
        self._batch = make_batch(ids, model.device, align=[length - 1 for length in self.lengths])
        self._kept: dict[int, KeysValues] = {}
        self._first = 0
        self._states_CPH: Tensor | None = None

    def reach(self, last: int) -> None:
        """Compute keys and values up to block `last` under the weights as they are now.

        Goes on at the block that was reached before; those below it must not have changed since.
        """
        if not max(self.lengths):
            return
        kept, outputs = keys_and_values(self.model, self._batch, last, first=self._first, states_BTH=self._states_CPH)
        self._kept |= kept
        if last > self._first:
            self._first, self._states_CPH = last, outputs[last - 1]

    def past(self, context_B: Sequence[int], first: int, last: int) -> Past | None:
        """Return the beginnings as the past of rows of the given contexts, for blocks `first` to `last`; None if they are empty."""
        width = max(self.lengths[context] for context in context_B)
        if not width:
            return None
        index_B = torch.tensor(context_B, device=self.model.device)
        kept = {
            block: (self._kept[block][0][..., -width:, :], self._kept[block][1][..., -width:, :])
            for block in range(first, last + 1)
        }
        return Past(self._batch.mask_BT[:, -width:], kept).rows(index_B)


def _shared(rows: Sequence[TokenRow]) -> int:
    """Return how many tokens all rows begin with, at most up to before the first subject's last token."""
    length = min(row.subject for row in rows)
    for row in rows:
        while row.ids[:length] != rows[0].ids[:length]:
            length -= 1
    return length


def _sliding_window(model: EditableModel) -> float:
    config = model.network.config
    width = getattr(getattr(config, "text_config", config), "sliding_window", None)
    return width if isinstance(width, int) and width > 0 else float("inf")
