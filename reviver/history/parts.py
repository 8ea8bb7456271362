"""The parts of a manifest, and how each is read from JSON that anybody may have written."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reviver.history.untrusted import Fields

DTYPES = ("BF16", "F16", "F32")
_DTYPE = re.compile("|".join(DTYPES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestBase:
    """The base that the chain of patches starts from."""

    model: str
    """The Hub id, or the name of a local folder; never a machine's path."""
    revision: str | None
    """The commit on the Hub; None for a local folder."""
    fingerprint: str
    """The base pin's fingerprint: one SHA-256 over shards, index and config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEditor:
    """The editor that found the update, and every setting it used."""

    name: str
    reference_url: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFilter:
    """The filter that the update passed."""

    name: str
    rank: int | None
    """The protected rank k as asked for; None where `energy` decides, or with no filter."""
    energy: float | None
    """The share τ of the squared singular values that is protected; None where `rank` decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFacts:
    """facts.jsonl of the version."""

    count: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestPatch:
    """patch.safetensors of the version."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """One number for the output side (left, U) and one for the input side (right, V) of a tensor."""

    left: float
    right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestTensor:
    """One edited tensor; norms are Frobenius norms, Δ is this version's own delta, W is as stored."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, int]
    patch_rank: int | None
    """R of the factors; None for a dense delta."""
    protected_rank: int | None
    """The k that the filter used here; None without a filter."""
    norm: float
    norm_before_filter: float
    relative_norm: float
    """‖Δ‖ / ‖W_base‖."""
    captured_fraction: float | None
    """⟨W_vN − W_parent, Δ⟩ / ‖Δ‖²: what of Δ survived the rounding to the stored dtype; None where Δ is zero."""
    leakage_after_rounding: Sides | None
    """‖Uᵀ(W_vN − W_parent)‖ and ‖(W_vN − W_parent)V‖ over ‖W_vN − W_parent‖; None without a filter."""
    subspace_similarity: Sides | None
    """‖U_kᵀÛ_k‖_F²/k and likewise for V, of the version against the base; None where it was not measured."""
    base_sha256: str
    result_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file of the version's checkpoint."""

    path: str
    size: int
    sha256: str
    changed: bool
    """Whether its bytes differ from the base's."""


def editor_record(editor: ManifestEditor) -> dict[str, Any]:
    """Return an editor's part as plain JSON values."""
    return {"name": editor.name, "reference_url": editor.reference_url, "settings": dict(editor.settings)}


def _fields(value: object, where: str, kind: type) -> Fields:
    fields = Fields(value, where)
    fields.only(_field_names(kind))
    return fields


@functools.cache
def _field_names(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


def read_base(value: object, where: str) -> ManifestBase:
    """Read the part about the base; raises ManifestError where it is not one."""
    fields = _fields(value, where, ManifestBase)
    return ManifestBase(
        model=fields.name("model"),
        revision=fields.optional("revision", fields.name),
        fingerprint=fields.sha256("fingerprint"),
    )


def read_editor(value: object, where: str) -> ManifestEditor:
    """Read the part about the editor; raises ManifestError where it is not one."""
    fields = _fields(value, where, ManifestEditor)
    return ManifestEditor(
        name=fields.name("name"),
        reference_url=fields.text("reference_url", limit=2048),
        settings=fields.mapping("settings"),
    )


def read_filter(value: object, where: str) -> ManifestFilter:
    """Read the part about the filter; raises ManifestError where it is not one."""
    fields = _fields(value, where, ManifestFilter)
    return ManifestFilter(
        name=fields.name("name"),
        rank=fields.optional("rank", fields.integer),
        energy=fields.optional("energy", fields.number),
    )


def read_facts(value: object, where: str) -> ManifestFacts:
    """Read the part about the facts; raises ManifestError where it is not one."""
    fields = _fields(value, where, ManifestFacts)
    return ManifestFacts(count=fields.integer("count"), sha256=fields.sha256("sha256"))


def read_patch(value: object, where: str) -> ManifestPatch:
    """Read the part about the patch; raises ManifestError where it is not one."""
    fields = _fields(value, where, ManifestPatch)
    return ManifestPatch(size=fields.integer("size"), sha256=fields.sha256("sha256"))


def _read_sides(value: object, where: str) -> Sides | None:
    if value is None:
        return None
    fields = _fields(value, where, Sides)
    return Sides(left=fields.number("left", minimum=0), right=fields.number("right", minimum=0))


def read_tensor(value: object, where: str) -> ManifestTensor:
    """Read the part about one tensor; raises ManifestError where it is not one."""
    fields = _fields(value, where, ManifestTensor)
    shape = fields.items("shape", limit=2)
    if len(shape) != 2 or any(type(size) is not int or not 0 < size < 2**31 for size in shape):
        raise fields.wrong("shape", "two positive sizes")
    smaller = min(shape)
    return ManifestTensor(
        name=fields.name("name"),
        shard=fields.path("shard"),
        dtype=fields.matching("dtype", _DTYPE, f"one of {', '.join(DTYPES)}"),
        shape=(shape[0], shape[1]),
        patch_rank=fields.optional("patch_rank", lambda key: fields.integer(key, minimum=1)),
        protected_rank=fields.optional("protected_rank", lambda key: fields.integer(key, maximum=smaller)),
        norm=fields.number("norm", minimum=0),
        norm_before_filter=fields.number("norm_before_filter", minimum=0),
        relative_norm=fields.number("relative_norm", minimum=0),
        captured_fraction=fields.optional("captured_fraction", fields.number),
        leakage_after_rounding=_read_sides(fields.raw("leakage_after_rounding"), f"{where}: leakage_after_rounding"),
        subspace_similarity=_read_sides(fields.raw("subspace_similarity"), f"{where}: subspace_similarity"),
        base_sha256=fields.sha256("base_sha256"),
        result_sha256=fields.sha256("result_sha256"),
    )


def read_file(value: object, where: str) -> ManifestFile:
    """Read the part about one file; raises ManifestError where it is not one."""
    fields = _fields(value, where, ManifestFile)
    return ManifestFile(
        path=fields.path("path"),
        size=fields.integer("size"),
        sha256=fields.sha256("sha256"),
        changed=fields.boolean("changed"),
    )
