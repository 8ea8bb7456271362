"""How the head moves: by an intent that is written first, so that a crash at any instant ends before or after.

`.reviver/pending.json` says which operation is being done. With a version, the operation has happened when `edits/vN`
exists and has the id that was meant (one rename, the commit); without one, when the intent itself is there (an `import`
brings several versions, which lie ready by then and only take their names). Readers take that into account without any
lock, and the next process that takes the lock finishes what has happened and removes what has not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reviver.errors import ManifestError, ResourceError, UnfinishedError, WorkspaceError
from reviver.files import disk_error, fsync_folder, pretty_json, write_atomic
from reviver.history.head import id_of, write_head
from reviver.history.manifest import is_version_name, version_number
from reviver.history.operations import Operation, append_operation, read_operations
from reviver.history.places import Places
from reviver.history.untrusted import DAMAGED_HINT, load_json, read_regular

MAXIMUM_INTENT_BYTES = 16 * 1024 * 1024


def read_intent(places: Places) -> Operation | None:
    """Return the operation that is being done, or was when its process died; None where there is none."""
    try:
        data = read_regular(places.pending_file, limit=MAXIMUM_INTENT_BYTES)
        return Operation.from_record(load_json(data, "pending.json"), "pending.json")
    except ManifestError as error:
        if not os.path.lexists(places.pending_file):
            return None  # There is none, or it was done between the two looks.
        if error.hint == DAMAGED_HINT:
            error.hint = "move `.reviver/pending.json` away, then see with `reviver status` what there is"
        raise


def has_happened(places: Places, intent: Operation) -> bool:
    """Tell whether an intent's operation counts as done."""
    return intent.version is None or id_of(places, intent.version) == intent.detail.get("id")


def write_intent(places: Places, intent: Operation) -> None:
    """Write the intent, durably; after an error there is none."""
    try:
        write_atomic(places.pending_file, pretty_json(intent.to_record()))
    except ResourceError:
        with suppress(ResourceError):
            remove_intent(places)
        if not os.path.lexists(places.pending_file):
            raise
        # It has its name and cannot be taken away again, so it counts.


@contextmanager
def done(
    what: str, *, hint: str = "do not run it again; mend the disk, and see with `reviver status` what is left"
) -> Iterator[None]:
    """Let an error of the disk say that the operation itself is done, so that nobody runs it twice.

    Args:
        what: what is done, as a sentence without a full stop.
        hint: what to do next.

    Raises:
        UnfinishedError: in place of a ResourceError.
    """
    try:
        yield
    except ResourceError as error:
        raise UnfinishedError(
            f"{what}, but something was left to do: {error.message}",
            hint=hint,
            **error.facts,
        ) from error


def roll_forward(places: Places, intent: Operation) -> None:
    """Finish an operation that has happened: names, head, log, and the intent goes. Every step may be done twice."""
    _settle_names(places, intent)
    _settle_memory(places, intent)
    write_head(places, intent.head_after)
    operations = read_operations(places.operations_file)
    if not operations or operations[-1].number < intent.number:
        append_operation(places.operations_file, intent)
    remove_intent(places)


def _settle_names(places: Places, intent: Operation) -> None:
    """Make the names of new versions durable; those that an `import` made ready get them now, each after its parent."""
    try:
        for name, there in sorted(intent.arrivals.items(), key=lambda pair: version_number(pair[0])):
            ready, place = places.arrivals / there, places.edits / name
            if is_version_name(ready.name) and ready.is_dir():
                if os.path.lexists(place):
                    raise WorkspaceError(
                        f"an unfinished import brings a version to `edits/{name}`, where another one has come to lie meanwhile",
                        hint=f"move `edits/{name}` away, let any command that writes finish the import, then import that one",
                        path=place,
                    )
                ready.rename(place)
        fsync_folder(places.edits)
    except OSError as error:
        raise disk_error(error, places.edits) from error


def _settle_memory(places: Places, intent: Operation) -> None:
    """Let what the editor remembers of a new version go by the version's id."""
    if intent.version is None:
        return
    ready, id = places.memory_draft(intent.version), id_of(places, intent.version)
    if id is None or ready.is_symlink() or not ready.is_dir():
        return
    try:
        # One by one, since the same version may have been made before, under another name.
        (places.memory / id).mkdir(exist_ok=True)
        for path in sorted(ready.iterdir()):
            path.replace(places.memory / id / path.name)
        fsync_folder(places.memory / id)
        ready.rmdir()
        fsync_folder(places.memory)
    except OSError as error:
        raise disk_error(error, ready) from error


def roll_back(places: Places, intent: Operation) -> None:
    """Undo the first half of an operation that has not happened: its checkpoint may stand already, its edits do not."""
    if intent.version is not None:
        remove_tree(places.checkpoints / intent.version)
    remove_intent(places)


def remove_intent(places: Places) -> None:
    """Remove the intent, durably."""
    try:
        places.pending_file.unlink(missing_ok=True)
        fsync_folder(places.private)
    except OSError as error:
        raise disk_error(error, places.pending_file) from error


def recover(places: Places) -> list[str]:
    """Bring a workspace whose lock is held to a clean state; returns the relative paths of the leftovers it removed.

    Raises:
        ResourceError: something cannot be written or removed.
        ManifestError: the intent or the operation log is damaged.
    """
    intent = read_intent(places)
    if intent is not None:
        if has_happened(places, intent):
            roll_forward(places, intent)
        else:
            roll_back(places, intent)
    removed = []
    for leftover in leftovers(places):
        remove_tree(leftover)
        removed.append(leftover.relative_to(places.root).as_posix())
    return removed


def unborn(places: Places) -> str | None:
    """Return the name of a version whose checkpoint may stand already while its edits do not: it does not exist.

    Raises:
        ManifestError: the intent is damaged.
    """
    intent = read_intent(places)
    return None if intent is None or has_happened(places, intent) else intent.version


def checkpoint_names(places: Places) -> list[str]:
    """Return the names of versions that go with the checkpoints here, oldest first, whether these versions exist or not.

    An unborn one is not among them: the next command that writes removes its checkpoint.

    Raises:
        ManifestError: the intent is damaged.
    """
    if not places.checkpoints.is_dir():
        return []
    doomed = unborn(places)
    names = (path.name for path in places.checkpoints.iterdir() if is_version_name(path.name))
    return sorted((name for name in names if name != doomed), key=version_number)


def leftovers(places: Places) -> Iterator[Path]:
    """Yield what dead processes left half made: every hidden `*.partial` at the places where reviver makes them, and the checkpoint
    of a version that was half committed.
    """
    with suppress(ManifestError):  # Whoever takes the lock is told that the intent is damaged.
        name = unborn(places)
        if name is not None and os.path.lexists(places.checkpoints / name):
            yield places.checkpoints / name
    for folder, depth in ((places.root, 0), (places.edits, 2), (places.checkpoints, 0), (places.private, 2)):
        yield from _partials(folder, depth)


def _partials(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the partial files and folders in a folder, and in those below it down to some depth; links are not followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, is_folder in found:
        if name.startswith(".") and name.endswith(".partial"):
            yield folder / name
        elif is_folder and depth:
            yield from _partials(folder / name, depth - 1)


def remove_tree(path: Path) -> None:
    """Remove a file, a link (never what it points to) or a folder with everything in it; nothing there is fine."""
    if not os.path.lexists(path):
        return  # A read-only disk would refuse to remove even that.
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise disk_error(error, path) from error
