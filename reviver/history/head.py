"""HEAD: the name of the current version, and its id, which decides where a merge of two histories gave it another name."""

from __future__ import annotations

import os
import re

from reviver.errors import ReviverError, WorkspaceError
from reviver.files import write_atomic
from reviver.history.manifest import BASE_NAME, MAXIMUM_MANIFEST_BYTES, VERSION_OR_BASE, Manifest, is_version_name
from reviver.history.places import Places
from reviver.history.untrusted import read_regular

_LIMIT = 256
_ID = re.compile(r"[0-9a-f]{64}")


def read_head(places: Places) -> str:
    """Return the name of the current version; `v0` is the base.

    Where the version of that name is not the one that was the head (its folder came from elsewhere, as after `git pull`),
    the one with its id is found under its new name. A name whose version is missing or damaged is returned as it stands.

    Raises:
        WorkspaceError: the file is damaged, or the version that was the head is gone and another has its name.
    """
    if not os.path.lexists(places.head_file):
        return BASE_NAME
    words = read_regular(places.head_file, limit=_LIMIT).decode("utf-8", "replace").split()
    name, id = words[0] if words else "", words[1] if len(words) == 2 else None
    if VERSION_OR_BASE.fullmatch(name) is None or len(words) > 2 or (id is not None and not _ID.fullmatch(id)):
        raise WorkspaceError(
            "`.reviver/HEAD` does not name a version",
            hint="write the name of a version from `reviver log` into it",
            path=places.head_file,
        )
    there = id_of(places, name)
    if id is None or there == id:
        return name
    for other in sorted(os.listdir(places.edits)) if places.edits.is_dir() else ():
        if id_of(places, other) == id:
            return other
    if there is None:
        return name
    raise WorkspaceError(
        f"the head was the version {id[:12]}, called {name}, which is gone; {name} is another version now",
        hint="get it again with `reviver import DIR` or git, or write the name of a version into `.reviver/HEAD`",
        version=name,
    )


def write_head(places: Places, name: str) -> None:
    """Make `name` the current version; the caller holds the lock."""
    id = id_of(places, name)
    write_atomic(places.head_file, f"{name}\n".encode() if id is None else f"{name}\n{id}\n".encode())


def id_of(places: Places, name: str) -> str | None:
    """Return a version's id as its manifest says; None for the base, and where it cannot be told."""
    if not is_version_name(name):
        return None
    try:
        data = read_regular(places.edits / name / "manifest.json", limit=MAXIMUM_MANIFEST_BYTES, root=places.edits)
        return Manifest.from_json(data, where=f"{name}/manifest.json").id
    except ReviverError:
        return None
