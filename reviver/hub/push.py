"""Publishing a release: one atomic commit on the head that was looked at, then a tag that never moves.

Whatever goes wrong on the way, the repository's branch shows the state before or the whole version. Large files are
sent one by one before the commit; the Hub keeps them, so that the next attempt sends only what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, errors
from huggingface_hub.errors import HfHubHTTPError

from reviver.errors import HubError, PermissionDeniedError, RemoteMovedError
from reviver.hub.connection import Connection, quiet, translated
from reviver.hub.plan import Plan
from reviver.hub.release import Release, ReleaseFile, checked
from reviver.hub.remote import Remote, list_files, look
from reviver.progress import Progress
from reviver.text import printable

_DUPLICATION_ERRORS = tuple({getattr(errors, "FileDuplicationError", ValueError)})
# Files below this size are sent together; a larger one is sent alone, so that an interruption costs at most that one.
_TOGETHER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What a push did."""

    commit: str
    created: bool
    """Whether the repository was made."""
    private: bool | None
    copied: bool
    """Whether the Hub made the copies that the plan asked for (it may refuse, and then everything is sent)."""


def carry_out(
    plan: Plan, release: Release, *, connection: Connection, message: str, public: bool, progress: Progress
) -> Publication:
    """Do what the plan says: make the repository, send the files, commit, check the result, tag it.

    Raises:
        TokenError: there is no token, or the Hub does not accept it.
        PermissionDeniedError: the token may not write there.
        RemoteMovedError: somebody committed since the plan was made; nothing was changed.
        CheckpointError: a file on this disk is not the one that the manifest promises.
        HubError: whatever else the Hub or the network refused.
    """
    connection = dataclasses.replace(connection, token=connection.required_token())
    repository, remote = plan.repository, plan.remote
    with quiet():
        if not remote.exists:
            remote = _create(connection, repository, public)
        head, copied = remote.head, True
        if plan.commit_needed:
            head, copied = _commit(connection, plan, release, remote, message, progress)
            _check_result(connection, release, repository, head)
        if head is None:
            raise HubError(f"`{repository}` has no commit", hint="run the command again", model=repository)
        if plan.tag_needed:
            _tag(connection, release, repository, head)
    return Publication(commit=head, created=not plan.remote.exists, private=remote.private, copied=copied)


def _create(connection: Connection, repository: str, public: bool) -> Remote:
    with translated(connection, repository):
        connection.api().create_repo(repository, private=not public, repo_type="model", exist_ok=True)
    remote = look(connection, repository)
    if not remote.exists:
        raise PermissionDeniedError(
            f"`{repository}` exists and this token cannot see it",
            hint="use a token with write access to it, or another repository",
            model=repository,
        )
    if remote.holds_weights:
        # It was hidden from the first look, or somebody made it this very moment.
        raise RemoteMovedError(
            f"`{repository}` was filled by somebody else meanwhile", hint="run the command again", model=repository
        )
    return remote


def _commit(
    connection: Connection, plan: Plan, release: Release, remote: Remote, message: str, progress: Progress
) -> tuple[str, bool]:
    """Send and commit; return the commit, and whether the copies were the Hub's own."""
    paths = {
        action: {one.path for one in plan.operations if one.action == action} for action in ("add", "copy", "delete")
    }
    files = {file.path: file for file in release.files}
    removed = [CommitOperationDelete(path_in_repo=path) for path in sorted(paths["delete"])]

    def commit(added: list[CommitOperationAdd], copies: list[CommitOperationCopy]) -> str:
        info = connection.api().create_commit(
            repo_id=plan.repository,
            repo_type="model",
            operations=[*removed, *added, *copies],
            commit_message=message,
            parent_commit=remote.head,
        )
        return str(info.oid)

    adding = [files[path] for path in sorted(paths["add"])]
    copying = [files[path] for path in sorted(paths["copy"])]
    added = _send(connection, plan.repository, adding, progress)
    with translated(connection, plan.repository):
        if not copying:
            return commit(added, []), True
        try:
            return commit(added, [_copy(release, file) for file in copying]), True
        except Exception as error:
            if not _copy_refused(error):
                raise
    progress.note("the Hub does not copy the base's files to this repository, so they are sent")
    # Operations carry the state of the attempt that used them, so a new attempt has new ones. The Hub keeps its bytes.
    added = _send(connection, plan.repository, [*adding, *copying], progress)
    with translated(connection, plan.repository):
        return commit(added, []), False


def _copy(release: Release, file: ReleaseFile) -> CommitOperationCopy:
    return CommitOperationCopy(
        src_path_in_repo=str(file.base_path),
        path_in_repo=file.path,
        src_revision=release.base_revision,
        src_repo_id=release.base_model,
        src_repo_type="model",
    )


def _copy_refused(error: Exception) -> bool:
    """Tell whether an error may be about the copies alone, so that sending the bytes is worth a try."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if "/lfs-files/duplicate" in str(error.response.request.url):
            return status not in (401, 429)
        return status in (400, 404, 409, 422)
    return isinstance(error, (ValueError, KeyError, errors.EntryNotFoundError, *_DUPLICATION_ERRORS))


def _send(
    connection: Connection, repository: str, files: list[ReleaseFile], progress: Progress
) -> list[CommitOperationAdd]:
    """Send the large files, one after another, and return the operations that put all of them in place."""
    sent = []
    with progress.task(f"send to {repository}", total=sum(file.size for file in files), unit="B") as task:
        for group in _groups(files):
            operations = [_addition(checked(file)) for file in group]
            with translated(connection, repository):
                connection.api().preupload_lfs_files(repository, operations, repo_type="model", free_memory=False)
            sent += operations
            task.advance(sum(file.size for file in group))
    return sent


def _addition(file: ReleaseFile) -> CommitOperationAdd:
    origin = str(file.origin) if isinstance(file.origin, Path) else file.origin
    addition = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=origin)
    # The bytes were hashed a moment ago; without this the client reads every shard once more. The Hub checks the hash.
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)
    return addition


def _groups(files: list[ReleaseFile]) -> Iterator[list[ReleaseFile]]:
    """Yield all small files together, then each large one alone."""
    small = [file for file in files if file.size < _TOGETHER_BYTES]
    if small:
        yield small
    for file in files:
        if file.size >= _TOGETHER_BYTES:
            yield [file]


def _check_result(connection: Connection, release: Release, repository: str, commit: str) -> None:
    """Look at what the commit holds: a file that the Hub ignored or altered must not be tagged as the version."""
    there = list_files(connection, repository, commit)
    for file in release.files:
        if file.path not in there or not there[file.path].holds(file):
            raise HubError(
                f"the Hub does not hold `{printable(file.path, 100)}` as it was sent",
                hint=f"look for a `.gitignore` in `{repository}` that keeps it out, and push again",
                model=repository,
                path=file.path,
            )


def _tag(connection: Connection, release: Release, repository: str, commit: str) -> None:
    api = connection.api()
    with translated(connection, repository):
        try:
            api.create_tag(repository, tag=release.version, revision=commit, repo_type="model")
            return
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repository).tags}
    if tags.get(release.version) != commit:
        raise RemoteMovedError(
            f"somebody else tagged `{release.version}` in `{repository}` meanwhile",
            hint="run the command again: it says whether the tag holds the same bytes",
            model=repository,
        )
