"""What lies between two versions: facts, tensors and files, whatever way the history leads from one to the other.

The delta from A to B is the sum of the patches that only B stands on less those that only A stands on. It is kept in
factors wherever it can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reviver.history.chain import common_length, result_hashes
from reviver.history.ledger import Key, KnownFact
from reviver.history.manifest import ManifestTensor
from reviver.history.tracing import keys_taken_back, known_facts_among
from reviver.history.version import Version
from reviver.progress import NullProgress, Progress

if TYPE_CHECKING:
    from reviver.checkpoint.delta import Delta
    from reviver.checkpoint.pin import BasePin
    from reviver.facts.fact import Fact

_CANCELLED = 1e-12
"""‖sum of patches‖ relative to the sum of their norms, below which they cancel: float64's rounding, far below float32's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """One fact that differs; `before` is the target at A, `after` at B, None where that side has no such fact."""

    subject: str
    prompt: str
    before: str | None
    after: str | None
    version: str
    """The version that set the fact: on B's side, or for a dropped fact on A's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """One tensor that differs."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, int]
    norm: float | None
    """‖Δ‖ of the delta from A to B; None where it was not computed."""
    relative_norm: float | None
    """‖Δ‖ / ‖W_base‖."""
    captured_fraction: float | None
    """⟨W_B − W_A, Δ⟩ / ‖Δ‖² with W as stored; None where the base is not there to tell."""
    before_sha256: str
    after_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file of the checkpoint that differs; a side that has no such file is None."""

    path: str
    before_size: int | None
    after_size: int | None
    before_sha256: str | None
    after_sha256: str | None


@dataclass(frozen=True, slots=True)
class SignedDelta:
    """One patch's delta of one tensor, to be added (+1) or taken away (−1)."""

    sign: int
    delta: Delta


def compare_facts(before: Sequence[Version], after: Sequence[Version]) -> list[FactChange]:
    """Return the facts whose target differs at the ends of two chains, in the order in which they were set.

    Only facts that the versions on one side touched can differ, so no other is read. Withheld facts are passed over.
    """
    shared = common_length(before, after)
    facts: dict[str, Sequence[Fact]] = {}
    keys: set[Key] = set()
    for chain in (before, after):
        for version in chain[shared:]:
            facts[version.name] = () if version.withheld else version.facts()
            keys |= {fact.key for fact in facts[version.name]} | keys_taken_back(chain, version)
    for version in before[:shared]:
        facts[version.name] = () if version.withheld else version.find_facts(lambda *key: key in keys)
    old, new = known_facts_among(before, facts), known_facts_among(after, facts)
    changes = [
        _fact_change(old.get(key), known)
        for key, known in new.items()
        if key not in old or old[key].fact.target_new != known.fact.target_new
    ]
    return changes + [_fact_change(known, None) for key, known in old.items() if key not in new]


def _fact_change(old: KnownFact | None, new: KnownFact | None) -> FactChange:
    known = new or old
    if known is None:
        raise ValueError("a change needs a fact on one side")
    return FactChange(
        subject=known.fact.subject,
        prompt=known.fact.prompt,
        before=None if old is None else old.fact.target_new,
        after=None if new is None else new.fact.target_new,
        version=known.version,
    )


def compare_files(before: Mapping[str, tuple[int, str]], after: Mapping[str, tuple[int, str]]) -> list[FileChange]:
    """Return the files that differ, by path; the arguments give size and SHA-256 by path."""
    changes = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old != new:
            changes.append(
                FileChange(
                    path=path,
                    before_size=old and old[0],
                    after_size=new and new[0],
                    before_sha256=old and old[1],
                    after_sha256=new and new[1],
                )
            )
    return changes


def files_of(version: Version | None, pin: BasePin | None) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 by path of a version's checkpoint; of the base for None."""
    if version is not None:
        return {file.path: (file.size, file.sha256) for file in version.manifest.files}
    return {} if pin is None else {file.path: (file.size, file.sha256) for file in pin.files}


def compare_tensors(
    before: Sequence[Version],
    after: Sequence[Version],
    pin: BasePin | None,
    *,
    measure: bool = True,
    progress: Progress | None = None,
) -> list[TensorChange]:
    """Return the tensors that differ at the ends of two chains, by name.

    Neighbours are told from the manifest alone. Otherwise the delta's norm is computed from the patches, and what the
    rounding kept of it from the base's bytes, where the base is there; both in float64.

    Args:
        pin: the base, if there is one.
        measure: compute what no manifest says; False leaves it None.
    """
    shared = common_length(before, after)
    dropped, added = before[shared:], after[shared:]
    described: dict[str, ManifestTensor] = {
        tensor.name: tensor for version in (*dropped, *added) for tensor in version.manifest.tensors
    }
    old, new = result_hashes(before), result_hashes(after)
    changes = []
    for name, tensor in sorted(described.items()):
        before_sha256, after_sha256 = old.get(name, tensor.base_sha256), new.get(name, tensor.base_sha256)
        steps = [version for version in (*dropped, *added) if any(one.name == name for one in version.manifest.tensors)]
        change = TensorChange(
            name=name,
            shard=tensor.shard,
            dtype=tensor.dtype,
            shape=tensor.shape,
            norm=None,
            relative_norm=None,
            captured_fraction=None,
            before_sha256=before_sha256,
            after_sha256=after_sha256,
        )
        if len(steps) == 1:
            # Only one patch between A and B touches this tensor, and its own manifest measured just this step.
            measured = next(one for one in steps[0].manifest.tensors if one.name == name)
            change = replace(
                change,
                norm=measured.norm,
                relative_norm=measured.relative_norm,
                captured_fraction=measured.captured_fraction,
            )
        elif measure:
            change = _measure(change, before, after, shared, pin, _base_norm(steps, name), progress or NullProgress())
        # Patches that cancel out to the byte leave nothing to tell, where the sum is nothing but float64's own rounding.
        applied = sum(one.norm for version in steps for one in version.manifest.tensors if one.name == name)
        if before_sha256 != after_sha256 or (change.norm or 0.0) > _CANCELLED * applied:
            changes.append(change)
    return changes


def _base_norm(versions: Sequence[Version], name: str) -> float | None:
    """Return ‖W_base‖ of a tensor as its manifests imply it."""
    for version in versions:
        for tensor in version.manifest.tensors:
            if tensor.name == name and tensor.norm > 0 and tensor.relative_norm > 0:
                return tensor.norm / tensor.relative_norm
    return None


def _measure(
    change: TensorChange,
    before: Sequence[Version],
    after: Sequence[Version],
    shared: int,
    pin: BasePin | None,
    base_norm: float | None,
    progress: Progress,
) -> TensorChange:
    from reviver.history.summation import captured_fraction, norm_of_sum

    old, new = _deltas(before, change.name), _deltas(after, change.name)
    common = len(_deltas(before[:shared], change.name))
    terms = [SignedDelta(-1, delta) for delta in old[common:]] + [SignedDelta(1, delta) for delta in new[common:]]
    norm = norm_of_sum(terms)
    captured = None
    if pin is not None and norm > 0:
        captured = captured_fraction(pin, change.name, old, new, terms, progress=progress)
    return replace(
        change,
        norm=norm,
        relative_norm=None if base_norm is None else norm / base_norm,
        captured_fraction=captured,
    )


def _deltas(chain: Sequence[Version], name: str) -> list[Delta]:
    patches = [version.patch() for version in chain if any(one.name == name for one in version.manifest.tensors)]
    return [patch.delta(name) for patch in patches]
