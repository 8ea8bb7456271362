"""The one solve that most editors share, in its factored form, and the spaces in which it can be done.

All of them look for the update X that brings the outputs of the facts' keys to their targets at the least cost,
‖X K − R‖² + ‖X K_p‖² + tr(X A Xᵀ), with K_p the keys of earlier rounds: X = [R, 0] (1 + K̃ᵀ A⁻¹ K̃)⁻¹ K̃ᵀ A⁻¹ with K̃
= [K, K_p]. So a round costs a solve of the size of its facts, not of the weight, and X has a component a fact: R's
column times a row that no residual enters. What differs is A⁻¹, given as a `Space`: `out(into(K))` = A⁻¹K, restricted
to where the update may lie.

Shape suffixes: see `base`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reviver.editing.editors.base import FactoredUpdate, ProtectedSpace
from reviver.editing.editors.kept import Kept, stays
from reviver.editing.editors.moments import SecondMoment, lower_solve, upper_solve
from reviver.errors import NumericsError
from reviver.spectral.decomposition import orthonormalise


class Space(Protocol):
    """Where the rows of an update may lie and what they cost: a linear map and its transpose with `out(into(K))` = A⁻¹K."""

    def into(self, keys_IN: Tensor) -> Tensor:
        """Return the whitened keys [J, N], float64."""

    def out(self, vectors_JN: Tensor) -> Tensor:
        """Return whitened vectors as input features [I, N]."""


@dataclass(frozen=True)
class MomentSpace:
    """All input features, at the cost A = λ(C + ρ·1) (MEMIT)."""

    moment: SecondMoment

    def into(self, keys_IN: Tensor) -> Tensor:
        """Return L⁻¹K."""
        return self.moment.whiten(keys_IN)

    def out(self, vectors_JN: Tensor) -> Tensor:
        """Return L⁻ᵀY."""
        return self.moment.unwhiten(vectors_JN)


@dataclass(frozen=True)
class FactorSpace:
    """All input features, at a cost whose lower Cholesky factor is given."""

    factor_II: Tensor | Kept

    def into(self, keys_IN: Tensor) -> Tensor:
        """Return L⁻¹K."""
        factor_II = self._factor()
        return lower_solve(factor_II, keys_IN.to(factor_II))

    def out(self, vectors_JN: Tensor) -> Tensor:
        """Return L⁻ᵀY."""
        return upper_solve(self._factor().T, vectors_JN)

    def _factor(self) -> Tensor:
        return self.factor_II.values() if isinstance(self.factor_II, Kept) else self.factor_II


@dataclass(frozen=True)
class FlatSpace:
    """All input features, at the cost `weight` times the identity (UltraEdit)."""

    weight: float
    device: torch.device

    def into(self, keys_IN: Tensor) -> Tensor:
        """Return the keys, scaled."""
        return keys_IN.to(self.device, torch.float64) / math.sqrt(self.weight)

    def out(self, vectors_JN: Tensor) -> Tensor:
        """Return the vectors, scaled."""
        return vectors_JN / math.sqrt(self.weight)


@dataclass(frozen=True)
class SpanSpace:
    """The span of orthonormal directions, at a cost within it (AlphaEdit's null space)."""

    directions_IJ: Kept
    inner: Space

    def into(self, keys_IN: Tensor) -> Tensor:
        """Return the keys in the coordinates of the span, whitened."""
        directions_IJ = self.directions_IJ.values()
        inside_JN = directions_IJ.T @ keys_IN.to(directions_IJ)
        del directions_IJ
        return self.inner.into(inside_JN)

    def out(self, vectors_JN: Tensor) -> Tensor:
        """Return the vectors as input features."""
        inside_JN = self.inner.out(vectors_JN)
        return self.directions_IJ.values() @ inside_JN


@dataclass(frozen=True)
class SelectedSpace:
    """Some of the input features, at a cost on them alone (NSE's neurons)."""

    features: Tensor
    size: int
    inner: Space

    def into(self, keys_IN: Tensor) -> Tensor:
        """Return the keys at these features, whitened."""
        return self.inner.into(keys_IN[self.features.to(keys_IN.device)])

    def out(self, vectors_JN: Tensor) -> Tensor:
        """Return the vectors at these features and zeros at all others."""
        inside_SN = self.inner.out(vectors_JN)
        all_IN = inside_SN.new_zeros((self.size, inside_SN.shape[1]))
        return all_IN.index_copy(0, self.features.to(all_IN.device), inside_SN)


@dataclass(frozen=True)
class SafeSpace:
    """Another space less the protected directions V: its A⁻¹ becomes A# = A⁻¹ − A⁻¹V(VᵀA⁻¹V)⁻¹VᵀA⁻¹.

    In whitened coordinates that is the orthogonal projection off V's image, which is exact where the textbook form
    subtracts numbers that nearly cancel.
    """

    inner: Space
    image_JK: Tensor

    @staticmethod
    def within(inner: Space, protected: ProtectedSpace) -> SafeSpace:
        """Return the part of `inner` that is orthogonal to the protected input directions."""
        return SafeSpace(inner, independent(inner.into(protected.input_IK)))

    def into(self, keys_IN: Tensor) -> Tensor:
        """Return the whitened keys less their part along the protected directions."""
        return self._outside(self.inner.into(keys_IN))

    def out(self, vectors_JN: Tensor) -> Tensor:
        """Return safe vectors as input features."""
        return self.inner.out(self._outside(vectors_JN))

    def _outside(self, vectors_JN: Tensor) -> Tensor:
        for _ in range(2):
            vectors_JN = vectors_JN - self.image_JK @ (self.image_JK.T @ vectors_JN)
        return vectors_JN


@dataclass(frozen=True)
class WhitenedKeys:
    """Keys Y [J, P] of earlier rounds in whitened coordinates, with the lower Cholesky factor [P, P] of 1 + YᵀY.

    Both grow by a part a round, and nothing but that part is written then: a device without room for all of them has
    the parts in host memory, and puts them together while it solves.

    Attributes:
        columns: of Y, [J, N] a round.
        rows: of the factor, up to the diagonal: [N, P + N] a round.
    """

    columns: tuple[Kept, ...]
    rows: tuple[Kept, ...]

    @staticmethod
    def of(vectors_JP: Tensor) -> WhitenedKeys:
        """Return the factored form of some whitened keys."""
        return WhitenedKeys((), ())._with(vectors_JP, _cholesky(identity_plus(vectors_JP.T @ vectors_JP)))

    def extended(self, vectors_JN: Tensor) -> WhitenedKeys:
        """Return these keys and further ones, at the cost of the further ones."""
        side_PN = lower_solve(self._factor(), self._vectors().T @ vectors_JN)
        corner_NN = _cholesky(identity_plus(vectors_JN.T @ vectors_JN) - side_PN.T @ side_PN)
        return self._with(vectors_JN, torch.cat([side_PN.T, corner_NN], dim=1))

    def without(self, vectors_JN: Tensor) -> Tensor:
        """Return (1 + Y Yᵀ)⁻¹ X: vectors less what these keys hold on to."""
        vectors_JP = self._vectors()
        return vectors_JN - vectors_JP @ torch.cholesky_solve(vectors_JP.T @ vectors_JN, self._factor())

    def _with(self, vectors_JN: Tensor, row_NP: Tensor) -> WhitenedKeys:
        columns = (*self.columns, Kept(vectors_JN, vectors_JN.device))
        rows = (*self.rows, Kept(row_NP, row_NP.device))
        if not stays(vectors_JN.device, sum(part.nbytes for part in (*columns, *rows))):
            for part in (*columns, *rows):
                part.park()
        return WhitenedKeys(columns, rows)

    def _vectors(self) -> Tensor:
        """Return Y, row by row in memory however many rounds it came in."""
        first = self.columns[0].values()
        vectors_JP = first.new_empty((first.shape[0], sum(part.shape[1] for part in self.columns)))
        start = 0
        for part in self.columns:
            vectors_JP[:, start : start + part.shape[1]] = part.values()
            start += part.shape[1]
        return vectors_JP

    def _factor(self) -> Tensor:
        count = self.rows[-1].shape[1]
        factor_PP = self.rows[0].values().new_zeros((count, count))
        for part in self.rows:
            end = part.shape[1]
            factor_PP[end - part.shape[0] : end, :end] = part.values()
        return factor_PP


def solve(
    space: Space,
    keys_IN: Tensor,
    residual_ON: Tensor,
    *,
    earlier: WhitenedKeys | None = None,
    protected: ProtectedSpace | None = None,
) -> FactoredUpdate:
    """Return R (1 + Kᵀ B K)⁻¹ Kᵀ B with B = A⁻¹, or (A + K_p K_pᵀ)⁻¹ where there are earlier keys, as factors.

    Args:
        space: A⁻¹ and where the rows of the update may lie.
        keys_IN: this round's keys.
        residual_ON: this round's residuals, already orthogonal to nothing: `protected` takes its part off the left
            factor.
        earlier: the whitened keys of earlier rounds.
        protected: for the constrained solve, the output directions to leave alone; `space` is then a `SafeSpace`.

    Returns:
        left = R, right = (1 + KᵀBK)⁻¹KᵀB: component r is fact r's residual times a row that depends on no residual,
        so that leaving it out is the same as solving with that fact's residual set to zero.

    Raises:
        NumericsError: the solve did not reach 1e-8 relative residual.
    """
    whitened_JN = space.into(keys_IN)
    inner_JN = whitened_JN if earlier is None else earlier.without(whitened_JN)
    system_NN = identity_plus(whitened_JN.T @ inner_JN)
    factor_NN = _cholesky(system_NN)
    solved_NJ = torch.cholesky_solve(inner_JN.T, factor_NN)
    left_OR = residual_ON.to(solved_NJ)
    _check_residual(system_NN, solved_NJ, inner_JN.T)
    if protected is not None:
        output_OK = protected.output_OK.to(left_OR)
        for _ in range(2):
            left_OR = left_OR - output_OK @ (output_OK.T @ left_OR)
    return FactoredUpdate(left_OR, space.out(solved_NJ.T).T)


def identity_plus(matrix_NN: Tensor) -> Tensor:
    """Return 1 + the symmetric part of a matrix."""
    result_NN = (matrix_NN + matrix_NN.T) * 0.5
    result_NN.diagonal().add_(1.0)
    return result_NN


def independent(vectors_JK: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of the columns; directions that are rounding noise of the others are left out."""
    if not vectors_JK.shape[1]:
        return vectors_JK
    # Whitened directions differ in length by the condition of A; only the span counts, so each is brought to length
    # one.
    lengths_K = torch.linalg.vector_norm(vectors_JK, dim=0)
    unit_JK = vectors_JK[:, lengths_K > 0] / lengths_K[lengths_K > 0]
    outer_JK, values_K, _ = torch.linalg.svd(unit_JK, full_matrices=False)
    kept = int((values_K > 1e-12 * values_K[0]).sum()) if len(values_K) else 0
    return orthonormalise(outer_JK[:, :kept])


def _cholesky(system_NN: Tensor) -> Tensor:
    factor_NN: Tensor
    factor_NN, failed = torch.linalg.cholesky_ex(system_NN)
    if int(failed):
        raise NumericsError(
            "the keys of this round are too large against the second moment to be solved for",
            hint="use a larger weight of the second moment (alphaedit, ultraedit: `l2`), or smaller rounds with `--round-size`",
        )
    return factor_NN


def _check_residual(system_NN: Tensor, solved_NJ: Tensor, wanted_NJ: Tensor) -> None:
    """Refuse a solve whose backward error is not that of float64 arithmetic."""
    error = float(torch.linalg.matrix_norm(system_NN @ solved_NJ - wanted_NJ))
    scale = float(torch.linalg.matrix_norm(system_NN)) * float(torch.linalg.matrix_norm(solved_NJ))
    if not error <= 1e-8 * (scale + float(torch.linalg.matrix_norm(wanted_NJ))):
        raise NumericsError(
            "the solve of this round lost its accuracy",
            hint="use a larger weight of the second moment (alphaedit, ultraedit: `l2`), or smaller rounds with `--round-size`",
        )
