"""`reviver log`: the versions, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reviver.errors import ReviverError, UsageError
from reviver.history.manifest import BASE_NAME
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
    versions: dict[str, Version] = {}
    for name in reversed(workspace.version_names()):
        try:
            versions[name] = Version.open(workspace.edits / name, name=name, root=workspace.edits)
        except ReviverError as error:
            warnings.append(problem_of(error))
    head = workspace.head()
    chain = set()
    name = head
    while name != BASE_NAME and name in versions:
        chain.add(name)
        name = versions[name].parent
    tags: dict[str, list[str]] = {}
    try:
        for tag, id in read_tags(workspace.tags_file).items():
            tags.setdefault(id, []).append(tag)
    except ReviverError as error:
        warnings.append(problem_of(error))
    entries = [
        _entry(workspace, version, head=head, in_chain=version.name in chain, tags=tuple(tags.get(version.id, ())))
        for version in list(versions.values())[:limit]
    ]
    return LogReport(head=head, total=len(versions), entries=tuple(entries), warnings=tuple(warnings))


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
