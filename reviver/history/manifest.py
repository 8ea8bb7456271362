"""The manifest of a version: what explains every byte of it (DESIGN section 3, schema 1).

The manifest's `id` hashes what defines the version and the id of its parent, so the ids form a chain from the base on,
as commits do in git. Version numbers, times, environment and metrics are outside the id: a renumbered version keeps it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reviver.errors import ManifestError
from reviver.files import canonical_json, pretty_json, sha256_bytes
from reviver.history.untrusted import DAMAGED_HINT, Fields, check_plain, load_json

SCHEMA = 1
MAXIMUM_MANIFEST_BYTES = 256 * 1024 * 1024
BASE_NAME = "v0"
DTYPES = ("BF16", "F16", "F32")
VERSION = re.compile(r"v[1-9][0-9]{0,8}")
VERSION_OR_BASE = re.compile(r"v(?:0|[1-9][0-9]{0,8})")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z")
_DTYPE = re.compile("|".join(DTYPES))


def version_number(name: str) -> int:
    """Return 3 for `v3` and 0 for the base.

    Raises:
        ManifestError: `name` is not the name of a version.
    """
    if VERSION_OR_BASE.fullmatch(name) is None:
        raise ManifestError(f"{ascii(name)[:80]} is not the name of a version", hint=DAMAGED_HINT)
    return int(name[1:])


def is_version_name(name: str) -> bool:
    """Tell whether `name` is `v1`, `v2`, … (the base, `v0`, has no folder and is none)."""
    return VERSION.fullmatch(name) is not None


def now() -> str:
    """Return the time in UTC as manifests and the operation log write it: `2026-01-31T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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


def manifest_id(
    *,
    parent_id: str,
    fingerprint: str,
    facts: ManifestFacts,
    patch: ManifestPatch,
    editor: ManifestEditor,
    filter: ManifestFilter,
) -> str:
    """Return a version's id; `parent_id` of a version on the base is the base's fingerprint."""
    return sha256_bytes(
        canonical_json(
            {
                "parent": parent_id,
                "base": fingerprint,
                "facts": dataclasses.asdict(facts),
                "patch": dataclasses.asdict(patch),
                "editor": _editor_record(editor),
                "filter": dataclasses.asdict(filter),
            }
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of one version; make a new one with `Manifest.create`, read one with `Manifest.from_json`."""

    id: str
    version: str
    parent: str
    message: str
    created: str
    base: ManifestBase
    editor: ManifestEditor
    filter: ManifestFilter
    facts: ManifestFacts
    patch: ManifestPatch
    tensors: tuple[ManifestTensor, ...]
    files: tuple[ManifestFile, ...]
    metrics: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    environment: Mapping[str, Any]
    timings: Mapping[str, Any]

    @classmethod
    def create(
        cls,
        *,
        parent_id: str,
        version: str,
        parent: str,
        base: ManifestBase,
        editor: ManifestEditor,
        filter: ManifestFilter,
        facts: ManifestFacts,
        patch: ManifestPatch,
        tensors: Sequence[ManifestTensor],
        files: Sequence[ManifestFile],
        message: str = "",
        created: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        rounds: Sequence[Mapping[str, Any]] = (),
        environment: Mapping[str, Any] | None = None,
        timings: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Return a new manifest with its id; it is checked as strictly as one that is read.

        Args:
            parent_id: the parent's id, from `Workspace.version_id(parent)` (the base's fingerprint for `v0`).

        Raises:
            ManifestError: a value could not be read back (NaN, a wrong hash, a path that leads out of its folder).
        """
        manifest = cls(
            id=manifest_id(
                parent_id=parent_id,
                fingerprint=base.fingerprint,
                facts=facts,
                patch=patch,
                editor=editor,
                filter=filter,
            ),
            version=version,
            parent=parent,
            message=message,
            created=created or now(),
            base=base,
            editor=editor,
            filter=filter,
            facts=facts,
            patch=patch,
            tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)),
            files=tuple(sorted(files, key=lambda file: file.path)),
            metrics=dict(metrics or {}),
            rounds=tuple(dict(one) for one in rounds),
            environment=dict(environment or {}),
            timings=dict(timings or {}),
        )
        check_plain(manifest.to_record(), "manifest.json")
        return cls.from_json(manifest.to_json())

    @property
    def number(self) -> int:
        """The number in the version's name."""
        return version_number(self.version)

    @property
    def parent_number(self) -> int:
        """The number in the parent's name; 0 is the base."""
        return version_number(self.parent)

    def expected_id(self, parent_id: str) -> str:
        """Return the id that the content asks for below a parent with `parent_id`; a forged one carries another."""
        return manifest_id(
            parent_id=parent_id,
            fingerprint=self.base.fingerprint,
            facts=self.facts,
            patch=self.patch,
            editor=self.editor,
            filter=self.filter,
        )

    def to_record(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "version": self.version,
            "parent": self.parent,
            "message": self.message,
            "created": self.created,
            "base": dataclasses.asdict(self.base),
            "editor": _editor_record(self.editor),
            "filter": dataclasses.asdict(self.filter),
            "facts": dataclasses.asdict(self.facts),
            "patch": dataclasses.asdict(self.patch),
            "tensors": [dataclasses.asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.tensors],
            "files": [dataclasses.asdict(file) for file in self.files],
            "metrics": dict(self.metrics),
            "rounds": [dict(one) for one in self.rounds],
            "environment": dict(self.environment),
            "timings": dict(self.timings),
        }

    def to_json(self) -> bytes:
        """Return the bytes of manifest.json."""
        return pretty_json(self.to_record())

    @classmethod
    def from_json(cls, data: bytes, *, where: str = "manifest.json") -> Manifest:
        """Read a manifest that anybody may have written; `where` names it in errors.

        Raises:
            ManifestError: it is not JSON, of a newer schema, lacks a key, has one too many or one of the wrong type.
            UnsafePathError: a path in it leads out of its folder.
        """
        fields = Fields(load_json(data, where), where)
        fields.schema(SCHEMA)
        fields.only(_KEYS)
        manifest = cls(
            id=fields.sha256("id"),
            version=fields.matching("version", VERSION, "the name of a version"),
            parent=fields.matching("parent", VERSION_OR_BASE, "the name of a version"),
            message=fields.text("message"),
            created=fields.matching("created", TIME, "a time in UTC"),
            base=_read_base(fields.raw("base"), f"{where}: base"),
            editor=_read_editor(fields.raw("editor"), f"{where}: editor"),
            filter=_read_filter(fields.raw("filter"), f"{where}: filter"),
            facts=_read_facts(fields.raw("facts"), f"{where}: facts"),
            patch=_read_patch(fields.raw("patch"), f"{where}: patch"),
            tensors=tuple(_read_tensor(item, f"{where}: tensors") for item in fields.items("tensors")),
            files=tuple(_read_file(item, f"{where}: files") for item in fields.items("files")),
            metrics=fields.mapping("metrics"),
            rounds=tuple(_read_round(item, f"{where}: rounds") for item in fields.items("rounds")),
            environment=fields.mapping("environment"),
            timings=fields.mapping("timings"),
        )
        # Numbers only grow along a chain, so a parent that is not lower is forged; it would also allow a circle.
        if manifest.parent_number >= manifest.number:
            raise ManifestError(f"`{where}`: the parent of {manifest.version} is {manifest.parent}", hint=DAMAGED_HINT)
        _refuse_twins([tensor.name for tensor in manifest.tensors], where, "tensor")
        # Two names that differ in case only would be one file on some file systems.
        _refuse_twins([file.path.casefold() for file in manifest.files], where, "file")
        return manifest


_KEYS = frozenset({"schema"} | {field.name for field in dataclasses.fields(Manifest)})


def _editor_record(editor: ManifestEditor) -> dict[str, Any]:
    return {"name": editor.name, "reference_url": editor.reference_url, "settings": dict(editor.settings)}


def _refuse_twins(names: Sequence[str], where: str, noun: str) -> None:
    if len(set(names)) != len(names):
        raise ManifestError(f"`{where}` names one {noun} twice", hint=DAMAGED_HINT)


def _fields(value: object, where: str, kind: type) -> Fields:
    fields = Fields(value, where)
    fields.only({field.name for field in dataclasses.fields(kind)})
    return fields


def _read_base(value: object, where: str) -> ManifestBase:
    fields = _fields(value, where, ManifestBase)
    return ManifestBase(
        model=fields.name("model"),
        revision=fields.optional("revision", fields.name),
        fingerprint=fields.sha256("fingerprint"),
    )


def _read_editor(value: object, where: str) -> ManifestEditor:
    fields = _fields(value, where, ManifestEditor)
    return ManifestEditor(
        name=fields.name("name"),
        reference_url=fields.text("reference_url", limit=2048),
        settings=fields.mapping("settings"),
    )


def _read_filter(value: object, where: str) -> ManifestFilter:
    fields = _fields(value, where, ManifestFilter)
    return ManifestFilter(
        name=fields.name("name"),
        rank=fields.optional("rank", fields.integer),
        energy=fields.optional("energy", fields.number),
    )


def _read_facts(value: object, where: str) -> ManifestFacts:
    fields = _fields(value, where, ManifestFacts)
    return ManifestFacts(count=fields.integer("count"), sha256=fields.sha256("sha256"))


def _read_patch(value: object, where: str) -> ManifestPatch:
    fields = _fields(value, where, ManifestPatch)
    return ManifestPatch(size=fields.integer("size"), sha256=fields.sha256("sha256"))


def _read_sides(value: object, where: str) -> Sides | None:
    if value is None:
        return None
    fields = _fields(value, where, Sides)
    return Sides(left=fields.number("left", minimum=0), right=fields.number("right", minimum=0))


def _read_tensor(value: object, where: str) -> ManifestTensor:
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


def _read_file(value: object, where: str) -> ManifestFile:
    fields = _fields(value, where, ManifestFile)
    return ManifestFile(
        path=fields.path("path"),
        size=fields.integer("size"),
        sha256=fields.sha256("sha256"),
        changed=fields.boolean("changed"),
    )


def _read_round(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"`{where}` holds something that is not an object", hint=DAMAGED_HINT)
    return value
