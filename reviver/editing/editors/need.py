"""How much memory an editor needs for one weight, told from the size of its problem before anything is loaded.

Legend: O output features, I input features, N facts of a round, P keys of earlier rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightShape:
    """The size of what an editor is going to solve at one weight.

    Attributes:
        outputs: output features O.
        inputs: input features I.
        facts: columns of a round's keys at most, N.
        total: those of all rounds together.
        remembered: keys of earlier rounds when the last begins, P; 0 where the editor is told to remember none.
    """

    outputs: int
    inputs: int
    facts: int
    total: int
    remembered: int = 0

    @property
    def round_bytes(self) -> int:
        """What the thin matrices of a round take: keys, whitened and solved, both factors before and after the filter."""
        return 8 * self.facts * (8 * self.inputs + 4 * self.outputs + 2 * self.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The memory that an editor needs for one weight, in bytes; estimates from above.

    Attributes:
        solve: on the device while it solves, what comes there of `kept` included.
        kept: from round to round. On a GPU only where it has room for that of all weights, else in main memory.
        kept_by_cpu: as `kept`, and only where a CPU solves.
        host: in main memory besides, while it solves.
        snapshot: of the sums over earlier rounds, when they are saved.
        null_space: of the null space that it asks the second moment for.
    """

    solve: int
    kept: int = 0
    kept_by_cpu: int = 0
    host: int = 0
    snapshot: int = 0
    null_space: int = 0


def moment_need(shape: WeightShape) -> Need:
    """Return what it takes to factor a matrix [I, I] and solve with it: itself, and the matrix that it is made from."""
    square = 8 * shape.inputs**2
    keys = shape.inputs * min(shape.inputs, shape.remembered)
    folded = square if shape.remembered > shape.inputs else 0
    # Earlier keys lie in main memory in float32, and their Gram matrix is formed there.
    return Need(
        solve=2 * square + shape.round_bytes,
        kept=square + 4 * keys + folded,
        host=8 * keys + 2 * square if keys else 0,
    )


def with_keys(need: Need, shape: WeightShape) -> Need:
    """Return the need of a solve that holds on to earlier keys besides.

    Those that lie side by side are at most I: whitened [I, P], with a factor [P, P] that the solve makes a copy of. More of
    them become a Gram matrix and the factor of it.

    Args:
        need: as `moment_need` returns it, the earlier keys themselves counted.
        shape: of the problem.
    """
    inputs, keys = shape.inputs, min(shape.inputs, shape.remembered)
    folded = 8 * inputs**2 if shape.remembered > inputs else 0
    solve = max(need.solve, 8 * inputs**2 + 8 * inputs * keys + 16 * keys**2 + shape.round_bytes)
    return replace(need, solve=solve, kept=need.kept + 8 * inputs * keys + 4 * keys**2 + folded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the work on the edited tensors takes beside their values.

    Attributes:
        needs: the editor's, one for each tensor.
        basis: bytes of what the filter keeps on the device for all of them.
        sums: bytes of the sums of all updates, in main memory.
    """

    needs: Sequence[Need]
    basis: int = 0
    sums: int = 0

    @property
    def solve(self) -> int:
        """Bytes on the device while one tensor is solved for."""
        return self.basis + max((need.solve for need in self.needs), default=0)

    def kept(self, *, cpu: bool) -> int:
        """Return the bytes in main memory all the time, where a device has no room for them."""
        return self.sums + sum(need.kept + (need.kept_by_cpu if cpu else 0) for need in self.needs)

    @property
    def host(self) -> int:
        """Bytes in main memory while one tensor is solved for."""
        return max((need.host for need in self.needs), default=0)
