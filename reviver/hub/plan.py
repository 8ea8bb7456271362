"""What a push would do: which files are sent, copied, removed or there already, and whether it may. Only reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import CommitOperationCopy

from reviver.errors import RemoteMovedError
from reviver.hub.connection import Connection, check_model_id, quiet, translated
from reviver.hub.release import Release, ReleaseFile
from reviver.hub.remote import Remote, base_files, list_files, look, published_paths
from reviver.text import printable

Action = Literal["add", "copy", "delete", "keep"]
_CAN_COPY = "src_repo_id" in {field.name for field in dataclasses.fields(CommitOperationCopy)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOperation:
    """What happens to one file of the repository."""

    action: Action
    """`add` sends bytes, `copy` lets the Hub copy them from the base, `keep` finds them there already."""
    path: str
    size: int
    """In bytes; of what is removed, the size that it had."""
    sha256: str | None
    """None for what is removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a push would do, from one look at the repository."""

    repository: str
    remote: Remote
    operations: tuple[PushOperation, ...]
    """Sorted by path."""
    commit_needed: bool
    tag_needed: bool
    replaces: str | None
    """The version that the repository shows now, if it is another one."""
    warnings: tuple[str, ...] = ()

    def total(self, action: Action) -> int:
        """Return the bytes of all operations of one kind."""
        return sum(operation.size for operation in self.operations if operation.action == action)


def full_name(connection: Connection, repository: str) -> str:
    """Return `org/name` for a repository; a bare `name` is the signed-in person's own.

    Raises:
        UsageError: it is not a well-formed id.
        TokenError: a bare name, and nobody is signed in.
    """
    check_model_id(repository, what="repository")
    if "/" in repository:
        return repository
    token = connection.required_token()
    with quiet(), translated(connection, repository):
        name = connection.api().whoami(token=token).get("name")
    return check_model_id(f"{name}/{repository}", what="repository")


def make_plan(
    release: Release, repository: str, *, connection: Connection, known: Mapping[str, ReleaseFile], public: bool = False
) -> Plan:
    """Look at the repository and return what publishing the release there would take; only reads.

    Args:
        repository: `org/name`.
        known: the manifest of every version in the workspace, by version; what the repository holds must be among them.

    Raises:
        RemoteMovedError: the repository holds versions, a model or a tag that this workspace does not know.
        HubError: whatever the Hub or the network refused.
    """
    with quiet():
        remote = look(connection, repository)
        if not remote.exists:
            return Plan(
                repository=repository,
                remote=remote,
                operations=_operations(release, remote, set(), _sources(release, connection)),
                commit_needed=True,
                tag_needed=True,
                replaces=None,
            )
        _check_history(repository, remote, known)
        tag = remote.tags.get(release.version)
        if tag is not None:
            _check_tag(connection, release, repository, tag)
        obsolete = published_paths(connection, repository, remote) - {file.path for file in release.files}
        missing = any(not _kept(file, remote) for file in release.files)
        operations = _operations(release, remote, obsolete, _sources(release, connection) if missing else {})
    shown = next(reversed(remote.versions), None)
    commit_needed = any(operation.action != "keep" for operation in operations)
    return Plan(
        repository=repository,
        remote=remote,
        operations=operations,
        commit_needed=commit_needed,
        tag_needed=tag is None,
        replaces=shown if commit_needed and shown != release.version else None,
        warnings=_visibility_warnings(repository, remote, public),
    )


def _visibility_warnings(repository: str, remote: Remote, public: bool) -> tuple[str, ...]:
    if public and remote.private:
        return (f"`{repository}` is private and stays so: `--public` counts only when the repository is made",)
    if not public and remote.private is False:
        return (f"`{repository}` is public: everybody can read what is pushed",)
    return ()


def _check_history(repository: str, remote: Remote, known: Mapping[str, ReleaseFile]) -> None:
    """Refuse to write over what did not come from this workspace's history."""
    if not remote.versions and remote.holds_weights:
        raise RemoteMovedError(
            f"`{repository}` holds a model that reviver did not push",
            hint="push to a new repository: its files would be replaced",
            model=repository,
        )
    for version, manifest in remote.versions.items():
        mine = known.get(version)
        if mine is None or not manifest.holds(mine):
            what = "which this workspace does not have" if mine is None else "which is another one here"
            raise RemoteMovedError(
                f"`{repository}` holds `{version}`, {what}",
                hint="push to another repository, or from the workspace that pushed it",
                model=repository,
                version=version,
            )


def _check_tag(connection: Connection, release: Release, repository: str, tag: str) -> None:
    """Refuse if the version's tag names other bytes: a published tag is never moved."""
    tagged = list_files(connection, repository, tag)
    for file in release.files:
        if file.defining and (file.path not in tagged or not tagged[file.path].holds(file)):
            raise RemoteMovedError(
                f"the tag `{release.version}` of `{repository}` holds another `{printable(file.path, 100)}`",
                hint="a published tag is never moved: push to another repository, or delete the tag on the Hub",
                model=repository,
                version=release.version,
            )


def _kept(file: ReleaseFile, remote: Remote) -> bool:
    return file.path in remote.files and remote.files[file.path].holds(file)


def _sources(release: Release, connection: Connection) -> dict[str, ReleaseFile]:
    """Return the files that the Hub can copy from the base's repository, by path: large ones with the same bytes."""
    if release.base_model is None or release.base_revision is None or not _CAN_COPY:
        return {}
    theirs = base_files(connection, release.base_model, release.base_revision)
    return {
        file.path: file
        for file in release.files
        if file.base_path is not None
        and file.base_path in theirs
        and theirs[file.base_path].copyable
        and theirs[file.base_path].sha256 == file.sha256
    }


def _operations(
    release: Release, remote: Remote, obsolete: set[str], sources: Mapping[str, ReleaseFile]
) -> tuple[PushOperation, ...]:
    operations = [
        PushOperation(
            action="keep" if _kept(file, remote) else "copy" if file.path in sources else "add",
            path=file.path,
            size=file.size,
            sha256=file.sha256,
        )
        for file in release.files
    ]
    operations += [
        PushOperation(action="delete", path=path, size=remote.files[path].size, sha256=None) for path in obsolete
    ]
    return tuple(sorted(operations, key=lambda operation: operation.path))
