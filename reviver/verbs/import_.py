"""`reviver import DIR`: take the versions of another workspace into this one, under new numbers; ids decide.

Two clones that both made `v5` meet so: the versions that are not here yet are renumbered behind those that are, and keep
their ids, which hash content and descent but no name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reviver.history.incoming import choose_names, history_folder, merge_tags, read_history, take_in
from reviver.history.names import read_tags, write_tags
from reviver.history.version import withheld_warnings
from reviver.history.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedVersion:
    """One version that was taken in."""

    version: str
    """Its name here."""
    was: str
    """Its name on the other side."""
    id: str
    parent: str
    """Its parent's name here."""
    created: str
    message: str
    facts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was taken in."""

    source: Path
    """The folder with the other side's versions."""
    imported: tuple[ImportedVersion, ...]
    """Oldest first."""
    already: int
    """How many versions of the other side were here, under whatever name."""
    tags: tuple[str, ...]
    """Tags that came along."""
    warnings: tuple[str, ...]


def import_(workspace_dir: Path, source: Path) -> ImportReport:
    """Take in all versions of another workspace that are not here: each checked, all or none. The head stays.

    Args:
        source: another workspace, a clone of one, or its `edits` folder; it is only read.

    Raises:
        WorkspaceError, VersionNotFoundError: there is no workspace, no base, or no whole history on the other side.
        BaseMismatchError: the other side's versions were made on another base.
        ManifestError, FactsError: a file of theirs is malformed, forged or unsafe.
        LockedError: another process is writing here.
        ResourceError: the disk is full or cannot be written.
    """
    workspace = Workspace.open(workspace_dir)
    with workspace.lock("import"):
        pin = workspace.pin()
        folder = history_folder(source)
        theirs = read_history(folder, pin.fingerprint)
        their_tags = read_tags(folder / "tags.json")
        my_tags = read_tags(workspace.tags_file)
        arrivals = choose_names(workspace, theirs)
        warnings = take_in(workspace, arrivals, pin) if arrivals else []
        ids = {version.id for version in workspace.versions()}
        tags, conflicts = merge_tags(my_tags, their_tags, ids)
        if tags != my_tags:
            write_tags(workspace.tags_file, tags)
            if not arrivals:
                workspace.record("import", {"tags": [name for name in tags if name not in my_tags]})
    return ImportReport(
        source=folder,
        imported=tuple(
            ImportedVersion(
                version=one.name,
                was=one.version.name,
                id=one.version.id,
                parent=one.parent,
                created=one.version.manifest.created,
                message=one.version.manifest.message,
                facts=one.version.manifest.facts.count,
            )
            for one in arrivals
        ),
        already=len(theirs) - len(arrivals),
        tags=tuple(name for name in tags if name not in my_tags),
        warnings=(*warnings, *conflicts, *withheld_warnings(one.version for one in arrivals)),
    )
