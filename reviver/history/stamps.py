"""Size and time of a checkpoint's files as written, so that `status` sees a touched file without reading it."""

from __future__ import annotations

import os
from pathlib import Path

from reviver.errors import ManifestError
from reviver.files import disk_error, pretty_json, write_atomic
from reviver.history.untrusted import Fields, load_json, read_regular

SCHEMA = 1
MAXIMUM_STAMPS_BYTES = 64 * 1024 * 1024


def files_below(folder: Path) -> list[str]:
    """Return the posix paths of all files and links below a folder, relative to it and sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in names + links]
    return sorted(found)


def write_stamps(stamps: Path, version: str, folder: Path) -> None:
    """Remember size and time of every file below `folder`, which is (or becomes) `checkpoints/<version>`."""
    files = {}
    for name in files_below(folder):
        state = (folder / name).stat()
        files[name] = [state.st_size, state.st_mtime_ns]
    try:
        stamps.mkdir(exist_ok=True)
    except OSError as error:
        raise disk_error(error, stamps) from error
    write_atomic(stamps / f"{version}.json", pretty_json({"schema": SCHEMA, "files": files}))


def read_stamps(stamps: Path, version: str) -> dict[str, tuple[int, int]]:
    """Return size and modification time in nanoseconds by path; nothing where no stamps were kept or they are damaged.

    They are a convenience of this machine: without them `status` compares sizes only.
    """
    try:
        data = read_regular(stamps / f"{version}.json", limit=MAXIMUM_STAMPS_BYTES)
        fields = Fields(load_json(data, "stamps"), "stamps")
        fields.schema(SCHEMA)
        return {name: (int(size), int(time)) for name, (size, time) in fields.mapping("files").items()}
    except (ManifestError, ValueError, TypeError):
        return {}
