"""What an editor is given and what it returns: pure data, the same for every editor.

Shape suffixes, the same in all modules of this package: `O` output features of the edited weight (hidden size), `I`
input features (MLP width), `N` facts of the round, `P` keys of earlier rounds, `R` rank of an update, `J` whitened
features, `K` protected directions. Keys are the columns of `keys_IN`, residuals those of `residual_ON`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from reviver.editing.editors.moments import SecondMoment
from reviver.editing.editors.need import Need, WeightShape, moment_need
from reviver.errors import NumericsError, SettingsError
from reviver.spectral.basis import SpectralBasis
from reviver.spectral.factors import factored_norm, finite


@dataclass(frozen=True, slots=True)
class FactoredUpdate:
    """An update of a weight [O, I] as `left_OR @ right_RI`, float64; component r belongs to fact r where the editor says so."""

    left_OR: Tensor
    right_RI: Tensor

    @property
    def rank(self) -> int:
        """How many components the factors have."""
        return self.left_OR.shape[1]

    def dense(self) -> Tensor:
        """Return the update as one matrix [O, I]."""
        return self.left_OR @ self.right_RI

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return factored_norm(self.left_OR, self.right_RI)

    def on_disk(self, *, transposed: bool) -> tuple[Tensor, Tensor]:
        """Return the factors (left, right) for the tensor on disk, which Conv1D layers store as [I, O]."""
        return (self.right_RI.T, self.left_OR.T) if transposed else (self.left_OR, self.right_RI)


@dataclass(frozen=True, slots=True)
class DenseUpdate:
    """An update of a weight [O, I] that has no low-rank form, in float64."""

    values_OI: Tensor

    def dense(self) -> Tensor:
        """Return the update as one matrix [O, I]."""
        return self.values_OI

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(torch.linalg.matrix_norm(self.values_OI))

    def on_disk(self, *, transposed: bool) -> Tensor:
        """Return the update for the tensor on disk, which Conv1D layers store as [I, O]."""
        return self.values_OI.T if transposed else self.values_OI


Update = FactoredUpdate | DenseUpdate


@runtime_checkable
class Keys(Protocol):
    """The keys of earlier rounds; immutable. Each version's are saved as they are and added again in their order."""

    def with_keys(self, keys_IN: Tensor) -> Keys:
        """Return the memory after a round with these keys."""


@runtime_checkable
class Snapshot(Protocol):
    """A sum over earlier rounds; immutable, and a few tensors when saved."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what has to be saved."""


Memory = Keys | Snapshot
"""What a sequential editor keeps of earlier rounds, for one weight."""


@dataclass(frozen=True, slots=True)
class ProtectedSpace:
    """The protected directions of one weight, in the orientation of the mathematics: the update must not touch them.

    Attributes:
        output_OK: orthonormal directions of the output side, U_k.
        input_IK: orthonormal directions of the input side, V_k.
    """

    output_OK: Tensor
    input_IK: Tensor

    @staticmethod
    def of(basis: SpectralBasis, rank: int, *, transposed: bool) -> ProtectedSpace:
        """Return the first `rank` directions of a basis of the tensor on disk, which Conv1D layers store as [I, O]."""
        narrow = basis.narrow(rank)
        left, right = (narrow.right_EK, narrow.left_DK) if transposed else (narrow.left_DK, narrow.right_EK)
        return ProtectedSpace(output_OK=left, input_IK=right)

    def shares_with(self, other: ProtectedSpace) -> bool:
        """Return whether both are views of the same vectors, so that what was prepared for one holds for the other."""
        pairs = ((self.output_OK, other.output_OK), (self.input_IK, other.input_IK))
        return all(a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() for a, b in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProblem:
    """One round's problem at one weight. An editor reads of it what its formula has.

    Attributes:
        keys_IN: input of the weight at each fact's subject, averaged over contexts. UltraEdit: at each answer token.
        residual_ON: what the weight's output should gain at those keys. UltraEdit: gradient of the loss with respect
            to that output.
        second_moment: λC of this layer; None for editors that need none.
        memory: what this editor returned from the rounds before, or None in the first.
        base_weight_OI: the pretrained weight W_0, for editors that compare with it.
        weight_OI: the weight as it is now, filtered updates of earlier rounds included.
        protected: set for the `constrained` filter only: solve inside the safe subspace instead of filtering
            afterwards.
    """

    keys_IN: Tensor
    residual_ON: Tensor
    second_moment: SecondMoment | None = None
    memory: Memory | None = None
    base_weight_OI: Tensor | None = None
    weight_OI: Tensor | None = None
    protected: ProtectedSpace | None = None

    def __post_init__(self) -> None:
        if self.keys_IN.ndim != 2 or self.residual_ON.ndim != 2 or self.keys_IN.shape[1] != self.residual_ON.shape[1]:
            raise ValueError(
                f"keys {tuple(self.keys_IN.shape)} and residuals {tuple(self.residual_ON.shape)} must have as many columns"
            )
        if not finite(self.keys_IN, self.residual_ON):
            raise NumericsError(
                "the keys or residuals of this round are NaN or infinite",
                hint="try `--dtype float32`, or smaller rounds with `--round-size`",
            )

    def moment(self) -> SecondMoment:
        """Return the second moment.

        Raises:
            ValueError: there is none; the caller did not read `Editor.needs_second_moment`.
        """
        if self.second_moment is None:
            raise ValueError("this editor needs the second moment of the layer")
        return self.second_moment


@dataclass(frozen=True, slots=True)
class Solution:
    """What an editor returns for one weight.

    Attributes:
        update: the change of the weight, before the filter (inside the safe subspace already under `constrained`).
        memory: what to keep for the next round. Editors that keep keys add them in `Editor.remember`, after the round.
    """

    update: Update
    memory: Memory | None = None


class SolveFunction(Protocol):
    """An editor's mathematics: a pure function of matrices."""

    def __call__(self, problem: LayerProblem, settings: Any) -> Solution:
        """Return the update of one weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Editor:
    """An editor: a function of matrices and what the rounds loop and a reader must know about it.

    Attributes:
        name: the name in `--editor`.
        title: the name in its paper.
        reference_url: the paper.
        solve: the mathematics.
        settings_type: a frozen dataclass of settings, each made by `setting`.
        memory: what it keeps of earlier rounds: nothing, `keys`, the `total` of its updates, or running `moments`.
        start_memory: returns the memory before the first round, or None where the settings want none; (settings, O, I).
        start_from: returns the memory of a weight that nothing was done to yet, where that takes the base weight [O, I].
        load_memory: returns a snapshot from its saved tensors; an editor of keys needs none.
        factored: whether its updates come as factors.
        facts_apart: whether component r of its factors belongs to fact r, so that one fact can be taken back.
        needs_second_moment: whether it reads λC.
        needs_weights: whether it reads `base_weight_OI` and `weight_OI`.
        targets_on: the weights on which targets are found: `current`, or `base` (NSE rewinds them).
        signal: what keys and residuals are: `targets` at subjects, or `gradients` at answer tokens (UltraEdit).
        repeat: returns which facts get one more pass, from their distances ‖z − h‖ after the round; (distance_N, settings).
        restraint: what to do in `reviver.toml` for smaller updates.
        needs: returns the memory that it needs for a weight; (settings, shape). Without, that of a solve with λC, or of thin
            matrices where it reads none.
    """

    name: str
    title: str
    reference_url: str
    solve: SolveFunction
    settings_type: type
    memory: Literal["none", "keys", "total", "moments"] = "none"
    start_memory: Callable[[Any, int, int], Memory | None] | None = None
    start_from: Callable[[Tensor], Memory] | None = None
    load_memory: Callable[[Mapping[str, Tensor]], Snapshot] | None = None
    factored: bool = True
    facts_apart: bool = True
    needs_second_moment: bool = True
    needs_weights: bool = False
    targets_on: Literal["current", "base"] = "current"
    signal: Literal["targets", "gradients"] = "targets"
    repeat: Callable[[Tensor, Any], Tensor] | None = None
    restraint: str = "raise `weight` (λ) under [moments]"
    needs: Callable[[Any, WeightShape], Need] | None = None

    def settings(self, values: Mapping[str, object] | None = None) -> Any:
        """Return the editor's settings from plain values, as they stand in `reviver.toml` or on the command line.

        Raises:
            SettingsError: a name is unknown, or a value of the wrong type or out of range.
        """
        return settings_from(self.settings_type, values or {}, editor=self.name)

    def begin(self, settings: Any, outputs: int, inputs: int) -> Memory | None:
        """Return the memory before the first round."""
        return self.start_memory(settings, outputs, inputs) if self.start_memory is not None else None

    def need(self, settings: Any, shape: WeightShape) -> Need:
        """Return the memory that it needs for a weight."""
        if self.needs is not None:
            return self.needs(settings, shape)
        return moment_need(shape) if self.needs_second_moment else Need(solve=shape.round_bytes)

    def remember(self, memory: Memory | None, keys_IN: Tensor) -> Memory | None:
        """Return the memory after a round, given the round's keys read again on the edited weights.

        Does nothing for a memory that does not hold keys, so the rounds loop may always call it.
        """
        return memory.with_keys(keys_IN) if isinstance(memory, Keys) else memory


def setting(
    default: Any,
    description: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Return a dataclass field that describes itself and knows its range (both ends included)."""
    return field(
        default=default, metadata={"description": description, "least": least, "most": most, "choices": choices}
    )


def settings_from(settings_type: type, values: Mapping[str, object], *, editor: str) -> Any:
    """Build a settings dataclass from plain values, checked against the type and range of each field.

    Raises:
        SettingsError: a name is unknown, or a value of the wrong type or out of range.
    """
    known = {each.name: each for each in fields(settings_type)}
    checked: dict[str, object] = {}
    for name, value in values.items():
        if name not in known:
            raise SettingsError(
                f"the editor `{editor}` has no setting `{name}`",
                hint=f"it has {', '.join(f'`{each}`' for each in known) or 'none'}",
                setting=name,
            )
        checked[name] = _checked(known[name], value, editor)
    missing = [
        name
        for name, each in known.items()
        if each.default is MISSING and each.default_factory is MISSING and name not in checked
    ]
    if missing:
        raise SettingsError(f"the editor `{editor}` needs the setting `{missing[0]}`", hint="set it in `reviver.toml`")
    return settings_type(**checked)


def _checked(each: Any, value: object, editor: str) -> object:
    wanted, metadata = type(each.default), each.metadata
    optional = each.default is None or metadata.get("optional", False)
    problem = None
    if value is None and optional:
        return None
    if wanted is bool:
        problem = None if isinstance(value, bool) else "true or false"
    elif wanted is str:
        choices = metadata.get("choices", ())
        if not isinstance(value, str) or (choices and value not in choices):
            problem = " or ".join(f"`{choice}`" for choice in choices) if choices else "text"
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        problem = "a number"
    elif wanted is int and int(value) != value:
        problem = "a whole number"
    else:
        value = int(value) if wanted is int else float(value)
        least, most = metadata.get("least"), metadata.get("most")
        if least is not None and value < least:
            problem = f"at least {least:g}"
        elif most is not None and value > most:
            problem = f"at most {most:g}"
    if problem is not None:
        raise SettingsError(
            f"the setting `{each.name}` of the editor `{editor}` must be {problem}, not {ascii(value)[:40]}",
            hint=str(metadata.get("description", "see the README")),
            setting=each.name,
        )
    return value
