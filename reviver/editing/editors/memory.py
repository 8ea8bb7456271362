"""The memory of sequential editors that keep the keys of earlier rounds.

It holds the keys themselves, until there are more of them than input features; from then on their Gram matrix K_p K_pᵀ,
which no longer grows.

Shape suffixes: see `base`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reviver.editing.editors.base import ProtectedSpace
from reviver.editing.editors.solve import Space, WhitenedKeys
from reviver.errors import NumericsError
from reviver.spectral.factors import finite


@dataclass(frozen=True, slots=True)
class Prepared:
    """A space and the earlier keys in its coordinates: what a solve needs of the memory.

    Attributes:
        made_from: the objects that the space was made from.
        space: where the update may lie and what it costs; the Gram matrix of the memory is part of the cost.
        whitened: the keys that are not in the Gram matrix; None where there are none.
    """

    made_from: tuple[object, ...]
    space: Space
    whitened: WhitenedKeys | None

    def extended(self, keys_IN: Tensor) -> Prepared:
        """Return the same with further keys."""
        vectors_JN = self.space.into(keys_IN)
        whitened = WhitenedKeys.of(vectors_JN) if self.whitened is None else self.whitened.extended(vectors_JN)
        return Prepared(self.made_from, self.space, whitened)


class KeyMemory:
    """The keys of earlier rounds at one weight.

    Immutable to its users; what it has prepared for a solve it keeps, and hands on to the memory of the next round.

    Attributes:
        keys_IP: the keys since the Gram matrix was last formed, float32, [I, P].
        gram_II: K_p K_pᵀ of the keys before, float64, or None.
        count: all keys remembered.
        widths: how many keys came in each round since; they are prepared round by round, so that a memory that is built up
            again gives the same bits.
    """

    def __init__(
        self,
        keys_IP: Tensor,
        gram_II: Tensor | None = None,
        count: int | None = None,
        widths: tuple[int, ...] | None = None,
    ) -> None:
        self.keys_IP = keys_IP
        self.gram_II = gram_II
        self.count = keys_IP.shape[1] if count is None else count
        self.widths = ((keys_IP.shape[1],) if keys_IP.shape[1] else ()) if widths is None else widths
        self._prepared: Prepared | None = None

    @staticmethod
    def empty(inputs: int) -> KeyMemory:
        """Return the memory before the first round."""
        return KeyMemory(torch.empty(inputs, 0))

    def with_keys(self, keys_IN: Tensor) -> KeyMemory:
        """Return the memory after a round with these keys.

        Raises:
            NumericsError: a key is NaN or infinite.
        """
        if not finite(keys_IN):
            raise NumericsError("a key of this round is NaN or infinite", hint="try `--dtype float32`")
        added_IN = _in_order(keys_IN.detach().to("cpu", torch.float32))
        keys_IP = torch.cat([self.keys_IP, added_IN], dim=1)
        if keys_IP.shape[1] > keys_IP.shape[0]:
            return KeyMemory(torch.empty(keys_IP.shape[0], 0), self._gram_with(keys_IP), self.count + added_IN.shape[1])
        widths = (*self.widths, added_IN.shape[1])
        memory = KeyMemory(keys_IP, self.gram_II, self.count + added_IN.shape[1], widths)
        if self._prepared is not None:
            memory._prepared = self._prepared.extended(added_IN)
        return memory

    def gram(self) -> Tensor:
        """Return K_p K_pᵀ of all keys, float64, [I, I]."""
        return self._gram_with(self.keys_IP)

    def gram_at(self, features: Tensor) -> Tensor:
        """Return K_p K_pᵀ on some input features only, float64, [S, S]."""
        features = features.to(self.keys_IP.device)
        keys_SP = self.keys_IP[features].to(torch.float64)
        gram_SS = keys_SP @ keys_SP.T
        return gram_SS if self.gram_II is None else gram_SS + self.gram_II[features][:, features]

    def prepared(self, made_from: tuple[object, ...], make: Callable[[Tensor | None], Space]) -> Prepared:
        """Return the space of a solve, and the keys in its coordinates; what is made once is handed on from round to round.

        Args:
            made_from: the objects that the space depends on besides this memory; the same objects, the same space.
            make: returns the space whose cost includes the given Gram matrix, if there is one.
        """
        known = self._prepared
        if known is None or not same_objects(known.made_from, made_from):
            known = Prepared(made_from, make(self.gram_II), None)
            start = 0
            for width in self.widths:
                known = known.extended(_in_order(self.keys_IP[:, start : start + width]))
                start += width
            self._prepared = known
        return known

    def _gram_with(self, keys_IP: Tensor) -> Tensor:
        wide_IP = keys_IP.to(torch.float64)
        gram_II = wide_IP @ wide_IP.T
        return gram_II if self.gram_II is None else gram_II + self.gram_II


def _in_order(keys_IN: Tensor) -> Tensor:
    """Return keys that lie in memory row by row wherever they came from; else products with them differ in the last bit."""
    return keys_IN.clone(memory_format=torch.contiguous_format)


def same_objects(known: tuple[object, ...], given: tuple[object, ...]) -> bool:
    """Return whether two tuples hold the same objects or numbers; views of the same protected vectors are the same."""
    return len(known) == len(given) and all(
        a is b
        or (isinstance(a, float) and a == b)
        or (isinstance(a, ProtectedSpace) and isinstance(b, ProtectedSpace) and a.shares_with(b))
        for a, b in zip(known, given, strict=True)
    )
