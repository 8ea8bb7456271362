"""A workspace on disk: where everything is, which versions exist, and which of them is the head."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import ReviverError, VersionNotFoundError, WorkspaceError
from reviver.files import disk_error, write_atomic
from reviver.history import lock, names
from reviver.history.draft import Draft
from reviver.history.head import read_head
from reviver.history.intent import (
    checkpoint_names,
    done,
    has_happened,
    leftovers,
    read_intent,
    recover,
    roll_forward,
    write_intent,
)
from reviver.history.manifest import BASE_NAME, is_version_name, now, version_number
from reviver.history.operations import Operation, append_operation, read_operations
from reviver.history.places import Places
from reviver.history.untrusted import read_regular, shown
from reviver.history.version import Version

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from reviver.checkpoint.pin import BasePin

MAXIMUM_PIN_BYTES = 1024 * 1024 * 1024
_GIT_IGNORE = b"# Made by reviver: what is here can be made again, or belongs to this machine.\n*\n"
# A clone that turns line ends into CRLF would not hold the bytes that the manifests hash.
_GIT_ATTRIBUTES = b"# Made by reviver: every file of the history keeps its bytes.\n* -text\n"


@dataclass(frozen=True, slots=True)
class Workspace(Places):
    """A folder with `edits/`, `checkpoints/` and `.reviver/`; from `Workspace.open` or `Workspace.create`.

    Reading needs no lock and sees a consistent state at any instant; writing needs `lock` (or `draft`, which takes it).
    """

    @classmethod
    def open(cls, folder: Path) -> Workspace:
        """Return the workspace in `folder`.

        Raises:
            WorkspaceError: there is none.
        """
        workspace = cls(Path(folder))
        if not workspace.private.is_dir():
            what = "does not exist" if not workspace.root.exists() else "is not a workspace"
            raise WorkspaceError(
                f"`{shown(workspace.root)}` {what}",
                hint="make one with `reviver init MODEL`, or name another folder with `-C`",
                path=workspace.root,
            )
        return workspace

    @classmethod
    def create(cls, folder: Path) -> Workspace:
        """Make the folders of a workspace where they are missing, and return it; what is there stays.

        Raises:
            ResourceError: the folder cannot be written to.
        """
        workspace = cls(Path(folder))
        try:
            for path in (workspace.edits, workspace.checkpoints, workspace.private):
                path.mkdir(parents=True, exist_ok=True)
            for path in (workspace.spectra, workspace.statistics, workspace.memory, workspace.staging):
                path.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(error, workspace.private) from error
        for path, content in (
            (workspace.checkpoints / ".gitignore", _GIT_IGNORE),
            (workspace.private / ".gitignore", _GIT_IGNORE),
            (workspace.edits / ".gitattributes", _GIT_ATTRIBUTES),
        ):
            if not path.exists():
                write_atomic(path, content)
        return workspace

    # What is there.

    def pin(self) -> BasePin:
        """Return the pin of the base.

        Raises:
            WorkspaceError: `init` has not got that far, or the pin is damaged or newer.
        """
        from reviver.checkpoint.pin import BasePin

        if not self.base_file.exists():
            raise WorkspaceError(
                f"`{shown(self.root)}` has no base yet",
                hint="finish it with `reviver init MODEL`",
                path=self.base_file,
            )
        return BasePin.from_json(read_regular(self.base_file, limit=MAXIMUM_PIN_BYTES))

    def save_pin(self, pin: BasePin) -> None:
        """Write the pin of the base; the caller holds the lock."""
        write_atomic(self.base_file, pin.to_json())

    def head(self) -> str:
        """Return the name of the current version; `v0` is the base.

        Raises:
            WorkspaceError: HEAD is damaged.
        """
        # The order matters: a commit between the two looks is then seen by the second.
        intent = read_intent(self)
        if intent is not None and has_happened(self, intent):
            return intent.head_after
        return read_head(self)

    def version_names(self) -> list[str]:
        """Return the names of all versions, oldest first, without reading one; the base is not among them."""
        try:
            with os.scandir(self.edits) as entries:
                found = [entry.name for entry in entries if is_version_name(entry.name) and entry.is_dir()]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda name: int(name[1:]))

    def versions(self) -> list[Version]:
        """Return all versions, oldest first; the base is not among them.

        Raises:
            ManifestError: the manifest of one is damaged.
        """
        return [self._read(name) for name in self.version_names()]

    def resolve(self, name: str) -> str:
        """Return `v3` (or `v0`) for what a person wrote: `v3`, `head`, `base`, `head~2`, a tag, the beginning of an id.

        Raises:
            VersionNotFoundError: nothing goes by this name, or several versions do.
        """
        name, steps = names.split_ancestor(name)
        found = self._resolve_plain(name)
        for _ in range(steps):
            if found == BASE_NAME:
                raise VersionNotFoundError(
                    f"`{shown(name)}~{steps}` goes back beyond the base", hint="see `reviver log`", name=name
                )
            found = self._read(found).parent
        return found

    def _resolve_plain(self, name: str) -> str:
        if name in ("head", "HEAD"):
            return self.head()
        if name in ("base", BASE_NAME):
            return BASE_NAME
        known = self.version_names()
        if is_version_name(name):
            if name not in known:
                raise names.not_found(name, known)
            return name
        tags = names.read_tags(self.tags_file)
        if name not in tags and not names.is_prefix(name.lower()):
            raise names.not_found(name, known)
        ids = {version.id: version.name for version in self.versions()}
        return names.find_tagged(name, tags[name], ids) if name in tags else names.find_by_prefix(name.lower(), ids)

    def version(self, name: str) -> Version:
        """Return the version that goes by `name` (see `resolve`).

        Raises:
            VersionNotFoundError: nothing goes by this name, or it is the base, which has no patch.
            ManifestError: its manifest is damaged.
        """
        found = self.resolve(name)
        if found == BASE_NAME:
            raise VersionNotFoundError(
                f"`{shown(name)}` is the base, which has no patch", hint="see `reviver log` for the versions", name=name
            )
        return self._read(found)

    def version_id(self, name: str) -> str:
        """Return the id of a version; the base's is its fingerprint."""
        found = self.resolve(name)
        return self.pin().fingerprint if found == BASE_NAME else self._read(found).id

    def chain(self, name: str, *, known: dict[str, Version] | None = None) -> list[Version]:
        """Return the versions whose patches make up `name`, oldest first; nothing for the base.

        Args:
            name: as a person names it.
            known: versions that were read already, by name; those that are read now join them.

        Raises:
            VersionNotFoundError: nothing goes by this name, or a parent is missing.
            ManifestError: a manifest is damaged, or not the child of the one below it.
        """
        chain: list[Version] = []
        known = {} if known is None else known
        found = self.resolve(name)
        while found != BASE_NAME:
            try:
                if found not in known:
                    known[found] = self._read(found)
                chain.append(known[found])
            except VersionNotFoundError as error:
                if not chain:
                    raise
                raise VersionNotFoundError(
                    f"`{chain[-1].name}` stands on `{found}`, which is missing",
                    hint=f"get `edits/{found}` again from where it came (git, or the Hub)",
                    name=found,
                ) from error
            found = chain[-1].parent
        return chain[::-1]

    def _read(self, name: str) -> Version:
        folder = self.edits / name
        if not folder.is_dir():
            raise names.not_found(name, self.version_names())
        return Version.open(folder, name=name, root=self.edits)

    # What was done.

    def operations(self) -> list[Operation]:
        """Return the operation log, oldest first, with an operation that happened and was not logged yet."""
        intent = read_intent(self)
        operations = read_operations(self.operations_file)
        if intent is not None and has_happened(self, intent):
            operations = [one for one in operations if one.number < intent.number] + [intent]
        return operations

    def next_operation(self) -> int:
        """Return the number of the next operation."""
        operations = self.operations()
        return operations[-1].number + 1 if operations else 1

    def next_number(self) -> int:
        """Return the number of the next version: beyond all there are and all there ever were."""
        numbers = [int(name[1:]) for name in self.version_names()]
        numbers += map(version_number, checkpoint_names(self))
        for operation in self.operations():
            mentioned = (operation.version, operation.head_before, operation.head_after, *operation.arrivals)
            numbers += [version_number(name) for name in mentioned if name]
        return max(numbers, default=0) + 1

    def leftovers(self) -> list[Path]:
        """Return what a dead process left half made; the next command that writes removes it."""
        return list(leftovers(self))

    # What is done.

    @contextmanager
    def lock(self, verb: str) -> Iterator[None]:
        """Hold the workspace's lock, after cleaning up what dead processes left; a thread may take it again inside.

        Raises:
            LockedError: another living process holds it.
            ResourceError: the workspace cannot be written to.
            KeyboardInterrupt: it came from the caller; with a sentence where the operation was done by then.
        """
        with lock.locked(self.lock_file, verb) as taken:
            if not taken:
                yield
                return
            recover(self)
            before = self._last_operation()
            try:
                yield
            except KeyboardInterrupt as error:
                last = self._last_operation()
                if last is None or (before is not None and last.number <= before.number):
                    raise
                raise KeyboardInterrupt(last.outcome()) from error

    def _last_operation(self) -> Operation | None:
        try:
            return self.operations()[-1]
        except (IndexError, ReviverError):
            return None  # A damaged log is told by those who need it.

    @contextmanager
    def draft(self, verb: str) -> Iterator[Draft]:
        """Make the next version under the lock; without `Draft.commit` nothing stays.

        Raises:
            LockedError, ResourceError: as `lock`.
        """
        with self.lock(verb):
            draft = Draft(self, verb)
            try:
                yield draft
            except BaseException:
                # What cannot be removed now is told by `status`, and the next command that writes removes it.
                with suppress(ReviverError):
                    draft.close()
                raise
            draft.close()

    def move_head(self, verb: str, name: str, detail: Mapping[str, Any] | None = None) -> Operation:
        """Make another version the head, as one logged operation; the caller holds the lock.

        Raises:
            VersionNotFoundError: nothing goes by this name.
            ResourceError: the workspace cannot be written to.
            UnfinishedError: the same, but the head has moved.
        """
        intent = Operation(
            number=self.next_operation(),
            verb=verb,
            time=now(),
            head_before=self.head(),
            head_after=self.resolve(name),
            version=None,
            detail=dict(detail or {}),
        )
        write_intent(self, intent)
        with done(intent.outcome()):
            roll_forward(self, intent)
        return intent

    def record(self, verb: str, detail: Mapping[str, Any] | None = None) -> Operation:
        """Log an operation that is done and does not move the head (`init`, `push`); the caller holds the lock.

        Raises:
            UnfinishedError: the log cannot be written to.
        """
        head = self.head()
        operation = Operation(
            number=self.next_operation(),
            verb=verb,
            time=now(),
            head_before=head,
            head_after=head,
            version=None,
            detail=dict(detail or {}),
        )
        with done(operation.outcome()):
            append_operation(self.operations_file, operation)
        return operation


def require_head(workspace: Workspace) -> str:
    """Return the head, which must exist.

    Raises:
        WorkspaceError: HEAD names a version that is not in `edits/`.
    """
    head = workspace.head()
    if head != BASE_NAME and head not in workspace.version_names():
        raise WorkspaceError(
            f"the head is `{head}`, which is not in `edits/`",
            hint="get it again from where it came (git, or the Hub), or go back with `reviver undo`",
            version=head,
        )
    return head
