"""A version in the making: two folders that become `edits/vN` and `checkpoints/vN` together, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reviver.errors import ManifestError
from reviver.files import disk_error, fsync_folder
from reviver.history.intent import done, recover, roll_forward, write_intent
from reviver.history.manifest import now
from reviver.history.operations import Operation
from reviver.history.stamps import write_stamps

if TYPE_CHECKING:
    from reviver.history.version import Version
    from reviver.history.workspace import Workspace

VERSION_FILES = ("facts.jsonl", "manifest.json", "patch.safetensors")


class Draft:
    """The next version while it is made; from `Workspace.draft`.

    Write facts.jsonl, patch.safetensors, results.jsonl and manifest.json into `edits_folder` and, unless the version
    goes without a checkpoint, a complete model folder into `checkpoint_folder`; then `commit`. Leaving the context
    without it leaves nothing behind.
    """

    def __init__(self, workspace: Workspace, verb: str) -> None:
        self._workspace = workspace
        self._verb = verb
        self._committed = False
        self.number = workspace.next_number()
        self.name = f"v{self.number}"
        self.edits_folder: Path = workspace.edits / f".{self.name}.partial"
        """Exists from the start."""
        self.checkpoint_folder: Path = workspace.checkpoints / f".{self.name}.partial"
        """Does not exist until somebody makes it; a draft without it commits a version without a checkpoint."""
        self.memory_folder: Path = workspace.memory_draft(self.name)
        """Likewise, for what an editor remembers of the version."""
        try:
            workspace.edits.mkdir(exist_ok=True)
            workspace.checkpoints.mkdir(exist_ok=True)
            self.edits_folder.mkdir()
        except OSError as error:
            raise disk_error(error, self.edits_folder) from error

    def commit(self, detail: Mapping[str, Any] | None = None) -> Version:
        """Make the version exist and be the head; returns it.

        The steps, each durable before the next begins: all files; the checkpoint's stamps; the intent; the checkpoint's
        name; the edits' name, which is the commit; HEAD; the operation log; the intent goes.

        Args:
            detail: what the operation log shall remember beside heads and version.

        Raises:
            ManifestError: a file of the version is missing, or the manifest belongs to another version.
            ResourceError: the disk is full or cannot be written.
            UnfinishedError: the same, but the version exists.
        """
        from reviver.history.version import Version

        places = self._workspace
        for name in VERSION_FILES:
            if not (self.edits_folder / name).is_file():
                raise ManifestError(f"the draft of {self.name} has no `{name}`", version=self.name)
        manifest = Version.open(self.edits_folder, name=self.name, root=self._workspace.edits).manifest
        with_checkpoint = self.checkpoint_folder.is_dir()
        intent = Operation(
            number=self._workspace.next_operation(),
            verb=self._verb,
            time=now(),
            head_before=self._workspace.head(),
            head_after=self.name,
            version=self.name,
            # A pull may bring another version of this name before the commit: the id tells which one came to be.
            detail={**(detail or {}), "id": manifest.id},
        )
        try:
            sync_tree(self.edits_folder)
            if self.memory_folder.is_dir():
                sync_tree(self.memory_folder)
                fsync_folder(places.memory)
            if with_checkpoint:
                sync_tree(self.checkpoint_folder)
                write_stamps(places.stamps, self.name, manifest.id, self.checkpoint_folder)
            write_intent(places, intent)
            if with_checkpoint:
                self.checkpoint_folder.rename(places.checkpoints / self.name)
                fsync_folder(places.checkpoints)
            self.edits_folder.rename(places.edits / self.name)
        except OSError as error:
            raise disk_error(error, places.edits / self.name) from error
        with done(intent.outcome()):
            roll_forward(places, intent)
        self._committed = True
        return Version(name=self.name, number=self.number, folder=places.edits / self.name, manifest=manifest)

    def close(self) -> None:
        """Remove what is half made; called at the end of the context. After a commit there is nothing to do.

        An interrupt inside `commit` leaves the intent: what has happened is finished here, with all that belongs to it.
        """
        if not self._committed:
            recover(self._workspace)


def sync_tree(folder: Path) -> None:
    """Make every file and every name below a folder durable; links are not followed."""
    for path in _files_then_folders(folder):
        if path.is_symlink():
            continue
        if path.is_dir():
            fsync_folder(path)
        else:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _files_then_folders(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, topdown=False):
        yield from (Path(parent) / name for name in sorted(names))
        yield Path(parent)
