"""The repository on the Hub as it stands: its files with their hashes, its tags, its head. Only reads."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

from reviver.errors import ReviverError, UnsafePathError
from reviver.files import safe_relative_path
from reviver.hub.connection import Connection, translated
from reviver.hub.release import SUMS, ReleaseFile, read_sums

_MANIFEST = re.compile(r"edits/(v[1-9][0-9]{0,8})/manifest\.json")
_MAXIMUM_SUMS_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository, as the Hub describes it."""

    size: int
    blob_id: str
    """The SHA-1 of git; of a large file it is that of its pointer."""
    sha256: str | None
    """Only of a large file."""
    copyable: bool
    """Whether the Hub can copy it to another repository without its bytes passing through here."""

    def holds(self, file: ReleaseFile) -> bool:
        """Tell whether these are the bytes of `file`."""
        if self.sha256 is not None:
            return self.sha256 == file.sha256
        return self.size == file.size and self.blob_id == file.git_blob_id()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A repository at one moment."""

    exists: bool
    private: bool | None = None
    head: str | None = None
    """The newest commit of its main branch."""
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    """At the head."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Commits by tag."""

    @property
    def versions(self) -> dict[str, RemoteFile]:
        """The manifests of the versions that it holds, by version."""
        found = {match[1]: file for path, file in self.files.items() if (match := _MANIFEST.fullmatch(path))}
        return dict(sorted(found.items(), key=lambda item: int(item[0][1:])))

    @property
    def holds_weights(self) -> bool:
        """Whether there is a model in it, whoever put it there."""
        return any(path == "config.json" or path.endswith((".safetensors", ".bin", ".gguf")) for path in self.files)


def look(connection: Connection, repository: str) -> Remote:
    """Return the repository as it stands now.

    Raises:
        HubError: whatever the Hub or the network refused; a repository that does not exist is no error.
    """
    api = connection.api()
    with translated(connection, repository):
        try:
            info = api.model_info(repository)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return Remote(exists=False)
        if info.sha is None:
            return Remote(exists=True, private=info.private)
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repository).tags}
    files = list_files(connection, repository, info.sha)
    return Remote(exists=True, private=info.private, head=info.sha, files=files, tags=tags)


def list_files(connection: Connection, repository: str, revision: str) -> dict[str, RemoteFile]:
    """Return the files of a repository at a commit or tag, by path; paths that lead out of a folder are passed over.

    Raises:
        HubError: whatever the Hub or the network refused.
    """
    files = {}
    with translated(connection, repository, revision=revision):
        for entry in connection.api().list_repo_tree(repository, recursive=True, revision=revision):
            if not hasattr(entry, "blob_id") or not _is_safe(entry.path):
                continue
            files[entry.path] = RemoteFile(
                size=entry.size,
                blob_id=entry.blob_id,
                sha256=entry.lfs.sha256 if entry.lfs is not None else None,
                copyable=entry.lfs is not None and entry.xet_hash is not None,
            )
    return files


def published_paths(connection: Connection, repository: str, remote: Remote) -> set[str]:
    """Return the paths that an earlier push put there, by the SHA256SUMS at the head; nobody else's are among them.

    Raises:
        HubError: whatever the Hub or the network refused.
    """
    sums = remote.files.get(SUMS)
    if sums is None or sums.size > _MAXIMUM_SUMS_BYTES or not remote.versions:
        return set()
    with tempfile.TemporaryDirectory(prefix="reviver-") as folder, translated(connection, repository):
        try:
            file = hf_hub_download(
                repository,
                SUMS,
                revision=remote.head,
                local_dir=folder,
                endpoint=connection.endpoint,
                token=connection.token,
            )
        except EntryNotFoundError:
            return set()
        return {path for path in (*read_sums(Path(file).read_bytes()), SUMS) if path in remote.files}


def base_files(connection: Connection, model: str, revision: str) -> dict[str, RemoteFile]:
    """Return the files of the base's repository; nothing where it cannot be seen, since copying is only a saving."""
    try:
        return list_files(connection, model, revision)
    except ReviverError:
        return {}


def _is_safe(path: object) -> bool:
    try:
        safe_relative_path(path)
    except UnsafePathError:
        return False
    return True
