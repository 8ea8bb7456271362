"""What a checkpoint was as written: of which version, and size and time of its files, so that `status` need not read them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reviver.errors import ManifestError
from reviver.files import disk_error, pretty_json, write_atomic
from reviver.history.untrusted import Fields, load_json, read_regular

SCHEMA = 1
MAXIMUM_STAMPS_BYTES = 64 * 1024 * 1024
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamps:
    """What is remembered of a checkpoint.

    Attributes:
        id: of the version that it was written for: another one may come to its name (a branch of git, say). None where
            nothing is remembered.
        files: by path, size and modification time in nanoseconds.
    """

    id: str | None = None
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def files_below(folder: Path) -> list[str]:
    """Return the posix paths of all files and links below a folder, relative to it and sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in names + links]
    return sorted(found)


def write_stamps(stamps: Path, version: str, id: str, folder: Path) -> None:
    """Remember size and time of every file below `folder`, which is (or becomes) `checkpoints/<version>`.

    Args:
        stamps: where they are kept.
        version: name of the version.
        id: its id; the base's is its fingerprint.
        folder: a complete model folder.
    """
    files = {}
    for name in files_below(folder):
        state = (folder / name).stat()
        files[name] = [state.st_size, state.st_mtime_ns]
    try:
        stamps.mkdir(exist_ok=True)
    except OSError as error:
        raise disk_error(error, stamps) from error
    write_atomic(stamps / f"{version}.json", pretty_json({"schema": SCHEMA, "id": id, "files": files}))


def read_stamps(stamps: Path, version: str) -> Stamps:
    """Return what is remembered of a checkpoint; nothing where no stamps were kept or they are damaged.

    They are a convenience of this machine: without them `status` compares sizes only.
    """
    try:
        data = read_regular(stamps / f"{version}.json", limit=MAXIMUM_STAMPS_BYTES)
        fields = Fields(load_json(data, "stamps"), "stamps")
        fields.schema(SCHEMA)
        return Stamps(
            id=fields.matching("id", _ID, "an id"),
            files={name: (int(size), int(time)) for name, (size, time) in fields.mapping("files").items()},
        )
    except (ManifestError, ValueError, TypeError, OverflowError):
        return Stamps()
