"""Measurements of a version that were taken after it was made: one JSON file a suite, the latest replacing the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reviver.errors import ManifestError, ReviverError
from reviver.files import disk_error, pretty_json, write_atomic
from reviver.history.manifest import BASE_NAME
from reviver.history.untrusted import DAMAGED_HINT, Fields, load_json, problem_of, read_regular, shown

if TYPE_CHECKING:
    from reviver.history.workspace import Workspace

SCHEMA = 1
MAXIMUM_EVALUATION_BYTES = 64 * 1024 * 1024
_KEYS = ("schema", "suite", "version", "version_id", "created", "metrics", "settings", "environment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One suite, measured on one version; it holds no text of a fact and no path.

    Attributes:
        suite: its name, also the file's.
        version: the version's name.
        version_id: its id; the base's fingerprint.
        created: when, in UTC.
        metrics: what was measured: numbers, and groups of them.
        settings: what the numbers depend on: files by name and hash, seeds, counts.
        environment: versions of libraries, device, dtype.
    """

    suite: str
    version: str
    version_id: str
    created: str
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    def to_json(self) -> bytes:
        """Return the file's bytes: sorted keys, so that a second measurement differs only where its numbers do."""
        return pretty_json({"schema": SCHEMA, **{key: getattr(self, key) for key in _KEYS[1:]}})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Evaluation:
        """Read a file that anybody may have written; raises ManifestError where it is none."""
        fields = Fields(load_json(data, where), where)
        fields.schema(SCHEMA)
        fields.only(_KEYS)
        return cls(
            suite=fields.text("suite"),
            version=fields.text("version"),
            version_id=fields.sha256("version_id"),
            created=fields.text("created"),
            metrics=fields.mapping("metrics"),
            settings=fields.mapping("settings"),
            environment=fields.mapping("environment"),
        )


def evaluations_folder(workspace: Workspace, version: str) -> Path:
    """Return where the evaluations of a version are kept: beside its manifest; the base's in the private folder."""
    return workspace.private / "evaluations" if version == BASE_NAME else workspace.edits / version / "evaluations"


def write_evaluation(folder: Path, evaluation: Evaluation) -> Path:
    """Write one evaluation, replacing the suite's last one, and return its file; the caller holds the lock.

    Raises:
        ManifestError: the folder is a link, which may lead anywhere.
        ResourceError: the disk is full or cannot be written.
    """
    if folder.is_symlink():
        raise ManifestError(f"`{shown(folder)}` is a link", hint=DAMAGED_HINT, path=folder)
    path = folder / f"{evaluation.suite}.json"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    write_atomic(path, evaluation.to_json())
    return path


def read_evaluations(folder: Path) -> tuple[list[Evaluation], list[str]]:
    """Return the evaluations in a folder by suite, and one line for each file that is none."""
    found: list[Evaluation] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() and not folder.is_symlink() else ():
        try:
            data = read_regular(path, limit=MAXIMUM_EVALUATION_BYTES)
            found.append(Evaluation.from_json(data, f"{folder.parent.name}/evaluations/{path.name}"))
        except ReviverError as error:
            problems.append(problem_of(error))
    return found, problems
