"""The manifest of a version: what explains every byte of it (schema 1).

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
from reviver.history.parts import (
    ManifestBase,
    ManifestEditor,
    ManifestFacts,
    ManifestFile,
    ManifestFilter,
    ManifestPatch,
    ManifestTensor,
    Sides,
    editor_record,
    read_base,
    read_editor,
    read_facts,
    read_file,
    read_filter,
    read_patch,
    read_tensor,
)
from reviver.history.untrusted import DAMAGED_HINT, Fields, check_plain, load_json

__all__ = [
    "BASE_NAME",
    "Manifest",
    "ManifestBase",
    "ManifestEditor",
    "ManifestFacts",
    "ManifestFile",
    "ManifestFilter",
    "ManifestPatch",
    "ManifestTensor",
    "Sides",
    "is_version_name",
    "manifest_id",
    "now",
    "version_number",
]

SCHEMA = 1
MAXIMUM_MANIFEST_BYTES = 64 * 1024 * 1024
BASE_NAME = "v0"
VERSION = re.compile(r"v[1-9][0-9]{0,8}")
VERSION_OR_BASE = re.compile(r"v(?:0|[1-9][0-9]{0,8})")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z")


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
                "editor": editor_record(editor),
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
            "editor": editor_record(self.editor),
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
            base=read_base(fields.raw("base"), f"{where}: base"),
            editor=read_editor(fields.raw("editor"), f"{where}: editor"),
            filter=read_filter(fields.raw("filter"), f"{where}: filter"),
            facts=read_facts(fields.raw("facts"), f"{where}: facts"),
            patch=read_patch(fields.raw("patch"), f"{where}: patch"),
            tensors=tuple(read_tensor(item, f"{where}: tensors") for item in fields.items("tensors")),
            files=tuple(read_file(item, f"{where}: files") for item in fields.items("files")),
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


def _refuse_twins(names: Sequence[str], where: str, noun: str) -> None:
    if len(set(names)) != len(names):
        raise ManifestError(f"`{where}` names one {noun} twice", hint=DAMAGED_HINT)


def _read_round(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"`{where}` holds something that is not an object", hint=DAMAGED_HINT)
    return value
