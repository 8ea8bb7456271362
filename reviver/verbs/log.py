"""`reviver log`: the versions, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from reviver.errors import ReviverError, UsageError
from reviver.history.manifest import BASE_NAME, version_number
from reviver.history.names import read_tags
from reviver.history.untrusted import problem_of
from reviver.history.version import Version
from reviver.history.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One version, as its manifest tells."""

    version: str
    id: str
    parent: str
    message: str
    created: str
    facts: int
    tensors: int
    editor: str
    filter: str
    rank: int | None
    energy: float | None
    patch_bytes: int
    checkpoint: bool
    """Whether its checkpoint is written."""
    head: bool
    in_chain: bool
    """Whether the head stands on it (or is it); the others are branches, or were undone."""
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReport:
    """The history, newest first."""

    head: str
    total: int
    """How many versions there are; `entries` may be fewer."""
    entries: tuple[LogEntry, ...]
    warnings: tuple[str, ...]
    """Versions that cannot be read, one line each."""


def log(workspace_dir: Path, *, limit: int | None = None) -> LogReport:
    """Return the versions of a workspace, newest first.

    Args:
        limit: at most so many.

    Raises:
        WorkspaceError: there is no workspace.
        UsageError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} shows nothing", hint="give at least 1")
    workspace = Workspace.open(workspace_dir)
    warnings: list[str] = []
    names = workspace.version_names()[::-1]
    # Only what is shown is read, and of the head's chain what lies above the oldest that is shown.
    versions: dict[str, Version | None] = {}

    def read(name: str) -> Version | None:
        if name not in versions:
            try:
                versions[name] = Version.open(workspace.edits / name, name=name, root=workspace.edits)
            except ReviverError as error:
                versions[name] = None
                warnings.append(problem_of(error))
        return versions[name]

    listed = list(islice((version for version in map(read, names) if version is not None), limit))
    try:
        head = workspace.head()
    except ReviverError as error:
        head = BASE_NAME
        warnings.append(problem_of(error))
    chain, known = set(), set(names)
    name = head
    while listed and name in known and version_number(name) >= listed[-1].number:
        chain.add(name)
        version = read(name)
        name = BASE_NAME if version is None else version.parent
    tags: dict[str, list[str]] = {}
    try:
        for tag, id in read_tags(workspace.tags_file).items():
            tags.setdefault(id, []).append(tag)
    except ReviverError as error:
        warnings.append(problem_of(error))
    entries = [
        _entry(workspace, version, head=head, in_chain=version.name in chain, tags=tuple(tags.get(version.id, ())))
        for version in listed
    ]
    return LogReport(head=head, total=len(names), entries=tuple(entries), warnings=tuple(warnings))


def _entry(workspace: Workspace, version: Version, *, head: str, in_chain: bool, tags: tuple[str, ...]) -> LogEntry:
    manifest = version.manifest
    return LogEntry(
        version=version.name,
        id=version.id,
        parent=version.parent,
        message=manifest.message,
        created=manifest.created,
        facts=manifest.facts.count,
        tensors=len(manifest.tensors),
        editor=manifest.editor.name,
        filter=manifest.filter.name,
        rank=manifest.filter.rank,
        energy=manifest.filter.energy,
        patch_bytes=manifest.patch.size,
        checkpoint=workspace.checkpoint(version.name).is_dir(),
        head=version.name == head,
        in_chain=in_chain,
        tags=tags,
    )
