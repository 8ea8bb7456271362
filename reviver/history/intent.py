"""How the head moves: by an intent that is written first, so that a crash at any instant ends before or after.

`.reviver/pending.json` says which operation is being done. With a version, the operation has happened when `edits/vN`
exists (one rename, the commit); without one, when the intent itself is there (an `import` brings several versions, which lie
ready by then and only take their names). Readers take that into account without
any lock, and the next process that takes the lock finishes what has happened and removes what has not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from reviver.errors import ManifestError
from reviver.files import disk_error, fsync_folder, pretty_json, write_atomic
from reviver.history.head import write_head
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
    return intent.version is None or (places.edits / intent.version).is_dir()


def write_intent(places: Places, intent: Operation) -> None:
    """Write the intent, durably."""
    write_atomic(places.pending_file, pretty_json(intent.to_record()))


def roll_forward(places: Places, intent: Operation) -> None:
    """Finish an operation that has happened: head, log, and the intent goes. Every step may be done twice."""
    _move_arrivals(places, intent)
    write_head(places, intent.head_after)
    operations = read_operations(places.operations_file)
    if not operations or operations[-1].number < intent.number:
        append_operation(places.operations_file, intent)
    remove_intent(places)


def _move_arrivals(places: Places, intent: Operation) -> None:
    """Give the versions that an `import` made ready their names here, each after its parent."""
    arrivals = intent.detail.get("arrivals") if intent.verb == "import" else None
    if not isinstance(arrivals, dict):
        return
    try:
        for name in sorted(filter(is_version_name, arrivals), key=version_number):
            ready = places.arrivals / str(arrivals[name])
            if is_version_name(ready.name) and ready.is_dir():
                ready.rename(places.edits / name)
        fsync_folder(places.edits)
    except OSError as error:
        raise disk_error(error, places.edits) from error


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


def leftovers(places: Places) -> Iterator[Path]:
    """Yield what dead processes left half made: every hidden `*.partial` at the places where reviver makes them."""
    folders = [places.root, places.edits, places.checkpoints, places.private]
    folders += [child for child in _entries(places.edits) if _is_folder(child) and not _is_partial(child)]
    folders += [child for child in _entries(places.private) if _is_folder(child) and not _is_partial(child)]
    for folder in folders:
        yield from (child for child in _entries(folder) if _is_partial(child))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def remove_tree(path: Path) -> None:
    """Remove a file, a link (never what it points to) or a folder with everything in it; nothing there is fine."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise disk_error(error, path) from error
