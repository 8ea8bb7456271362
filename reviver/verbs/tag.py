"""`reviver tag`: names of one's own for versions, kept in `edits/tags.json` with the history.

A tag names a version's id, so it survives a renumbering and means the same version in every clone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reviver.errors import UsageError, VersionNotFoundError, WorkspaceError
from reviver.history.manifest import BASE_NAME
from reviver.history.names import check_tag_name, read_tags, write_tags
from reviver.history.workspace import Workspace
from reviver.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """One tag."""

    name: str
    id: str
    """Of the version that it names."""
    version: str | None
    """The version's name here; None where the version is not in `edits/`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagReport:
    """What was done, and all tags as they are now, by name."""

    did: Literal["listed", "set", "kept", "deleted"]
    """`kept`: the tag named this version already."""
    tag: Tag | None
    """The one that was set, kept or deleted."""
    tags: tuple[Tag, ...]


def list_tags(workspace_dir: Path) -> TagReport:
    """Return the tags of a workspace.

    Raises:
        WorkspaceError, ManifestError: there is no workspace, or a manifest or `tags.json` is damaged.
    """
    workspace = Workspace.open(workspace_dir)
    return TagReport(did="listed", tag=None, tags=_described(workspace, read_tags(workspace.tags_file)))


def tag(workspace_dir: Path, name: str, version: str = "head") -> TagReport:
    """Give a version a name.

    Args:
        name: letters, digits, `.`, `_` and `-`; nothing that names a version already.
        version: any name of a version but the base, which is called `base`.

    Raises:
        UsageError: no tag may be called so, or the version is the base.
        WorkspaceError: another version has this tag.
        VersionNotFoundError, ManifestError: there is no such version, or the history is damaged.
        LockedError: another process is writing.
    """
    check_tag_name(name)
    workspace = Workspace.open(workspace_dir)
    with workspace.lock("tag"):
        found = workspace.resolve(version)
        if found == BASE_NAME:
            raise UsageError(
                "the base needs no tag: it is called `base`", hint="name a version from `reviver log`", name=version
            )
        id = workspace.version_id(found)
        tags = read_tags(workspace.tags_file)
        before = tags.get(name)
        if before is not None and before != id:
            (named,) = _described(workspace, {name: before})
            raise WorkspaceError(
                f"the tag `{name}` names {named.version or f'the version {before[:12]}'} already",
                hint=f"take it away first with `reviver tag --delete {name}`",
                name=name,
            )
        if before is None:
            tags = dict(sorted({**tags, name: id}.items()))
            write_tags(workspace.tags_file, tags)
            workspace.record("tag", {"tag": name, "id": id})
    described = _described(workspace, tags)
    return TagReport(
        did="set" if before is None else "kept",
        # Of two versions with one id, which are the same, a tag names the one that the list of tags does.
        tag=next(one for one in described if one.name == name),
        tags=described,
    )


def delete_tag(workspace_dir: Path, name: str) -> TagReport:
    """Take a tag away; the version stays.

    Raises:
        VersionNotFoundError: there is no such tag.
        WorkspaceError, ManifestError: there is no workspace, or a manifest or `tags.json` is damaged.
        LockedError: another process is writing.
    """
    workspace = Workspace.open(workspace_dir)
    with workspace.lock("tag"):
        tags = read_tags(workspace.tags_file)
        if name not in tags:
            raise VersionNotFoundError(
                f"there is no tag `{printable(name, 80)}`", hint="`reviver tag` lists the tags", name=name
            )
        described = {one.name: one for one in _described(workspace, tags)}
        kept = {tag: id for tag, id in tags.items() if tag != name}
        write_tags(workspace.tags_file, kept)
        workspace.record("tag", {"tag": name, "id": tags[name], "deleted": True})
    return TagReport(did="deleted", tag=described.pop(name), tags=tuple(described.values()))


def _described(workspace: Workspace, tags: dict[str, str]) -> tuple[Tag, ...]:
    names = {version.id: version.name for version in workspace.versions()} if tags else {}
    return tuple(Tag(name=name, id=id, version=names.get(id)) for name, id in tags.items())
