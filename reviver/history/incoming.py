"""Versions of another workspace on their way into this one: read, checked, staged under new numbers, taken in at once.

Whatever the other side holds, it is a stranger's. Every file is copied first and the copy is checked, so that nothing can
change between the look and the use. Ids decide: a version whose id is here already is not taken again, whatever its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import (
    BaseMismatchError,
    FactsError,
    ManifestError,
    ReviverError,
    VersionNotFoundError,
    WorkspaceError,
)
from reviver.files import CHUNK_BYTES, disk_error, fsync_folder, write_atomic, write_fully
from reviver.history.chain import check_chain
from reviver.history.draft import sync_tree
from reviver.history.evaluations import MAXIMUM_EVALUATION_BYTES, Evaluation
from reviver.history.intent import done, recover, roll_forward, write_intent
from reviver.history.manifest import BASE_NAME, MAXIMUM_MANIFEST_BYTES, is_version_name, now, version_number
from reviver.history.operations import Operation
from reviver.history.results import MAXIMUM_RESULTS_BYTES
from reviver.history.takes import branch_tips, unfounded_takes
from reviver.history.untrusted import open_regular, problem_of, read_regular, shown
from reviver.history.verification import tensor_problems
from reviver.history.version import MAXIMUM_FACTS_BYTES, Version
from reviver.history.workspace import Workspace
from reviver.text import human_bytes, plural

if TYPE_CHECKING:
    from reviver.checkpoint.pin import BasePin

# Unlike what makes a version, an import may be run twice, and the second time brings the tags.
_AGAIN = "mend the disk and run it again: what is here already is left alone, and the tags come as well"
_SUITE_FILE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.json")
_KNOWN_FILES = frozenset(("facts.jsonl", "manifest.json", "patch.safetensors", "results.jsonl", "evaluations"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One version that is (or will be) taken in."""

    name: str
    """Its name here."""
    parent: str
    """Its parent's name here."""
    version: Version
    """As it is on the other side."""


def history_folder(place: Path) -> Path:
    """Return the folder with the versions: `edits/` of a workspace or clone, or the folder itself.

    Raises:
        WorkspaceError: there are no versions.
    """
    for folder in (place / "edits", place):
        if folder.is_dir() and any(is_version_name(path.name) for path in folder.iterdir()):
            return folder
    what = "does not exist" if not place.exists() else "holds no versions"
    raise WorkspaceError(
        f"`{shown(place)}` {what}", hint="name another workspace, a clone of one, or its `edits` folder", path=place
    )


def read_history(folder: Path, fingerprint: str) -> list[Version]:
    """Return all versions in a folder, each after its parent, with ids that follow from their content.

    Args:
        folder: from `history_folder`.
        fingerprint: of the base here, on which all of them must stand.

    Raises:
        BaseMismatchError: a version was made on another base.
        VersionNotFoundError: a version's parent is not there.
        ManifestError: a manifest is malformed or forged, or a folder is a link.
    """
    names = sorted((path.name for path in folder.iterdir() if is_version_name(path.name)), key=version_number)
    there = {BASE_NAME, *names}
    with told_of(folder):
        versions = [Version.open(folder / name, name=name, root=folder) for name in names]
    for version in versions:
        if version.parent not in there:
            raise VersionNotFoundError(
                f"`{version.name}` of `{shown(folder)}` stands on `{version.parent}`, which is not there",
                hint="get the whole history: a version cannot be checked without what it stands on",
                name=version.parent,
            )
    with told_of(folder):
        check_chain(versions, fingerprint)
    return versions


def choose_names(workspace: Workspace, theirs: Sequence[Version]) -> list[Arrival]:
    """Return the versions that are not here yet, each with the next free name; each after its parent."""
    here = {version.id: version.name for version in reversed(workspace.versions())}
    number = workspace.next_number()
    names = {BASE_NAME: BASE_NAME}
    arrivals = []
    for version in theirs:
        if version.id not in here:
            here[version.id] = f"v{number}"
            arrivals.append(Arrival(name=f"v{number}", parent=names[version.parent], version=version))
            number += 1
        names[version.name] = here[version.id]
    return arrivals


def take_in(workspace: Workspace, arrivals: Sequence[Arrival], pin: BasePin) -> list[str]:
    """Copy and check versions, and let all of them appear in `edits/` as one operation; the caller holds the lock.

    Returns:
        What was left behind, one line each: files that belong to no version.

    Raises:
        ManifestError, FactsError, BaseMismatchError: a file is missing, malformed or forged, or made for another base, or a
            version takes back what is not there; nothing was taken.
        ResourceError: the disk is full or cannot be written; nothing was taken.
        UnfinishedError: the same, but all of them are taken.
    """
    warnings: list[str] = []
    what = f"{plural(len(arrivals), 'version is', 'versions are')} taken in"
    try:
        try:
            workspace.arrivals.mkdir(parents=True)
        except OSError as error:
            raise disk_error(error, workspace.arrivals) from error
        for arrival in arrivals:
            with told_of(arrival.version.folder.parent):
                warnings += _stage(workspace.arrivals, arrival, pin)
        _check_takes(workspace, arrivals)
        sync_tree(workspace.arrivals)
        fsync_folder(workspace.edits)
        head = workspace.head()
        intent = Operation(
            number=workspace.next_operation(),
            verb="import",
            time=now(),
            head_before=head,
            head_after=head,
            version=None,
            detail={
                "arrivals": {one.name: one.version.name for one in arrivals},
                "ids": {one.name: one.version.id for one in arrivals},
            },
        )
        # From here on it has happened: a process that dies now leaves the rest to the next one that takes the lock.
        write_intent(workspace, intent)
        with done(what, hint=_AGAIN):
            roll_forward(workspace, intent)
    except BaseException:
        with suppress(ReviverError):
            recover(workspace)
        raise
    with done(what, hint=_AGAIN):
        recover(workspace)
    return warnings


def _check_takes(workspace: Workspace, arrivals: Sequence[Arrival]) -> None:
    """Refuse versions that take back what is not below them; their copies are read."""
    versions = {version.name: version for version in workspace.versions()}
    ids = set()
    for one in arrivals:
        manifest = replace(one.version.manifest, parent=one.parent)
        versions[one.name] = replace(one.version, folder=workspace.arrivals / one.version.name, manifest=manifest)
        ids.add(one.version.id)
    problems = unfounded_takes(chain for chain in branch_tips(versions) if chain[-1].id in ids)
    for one in arrivals:
        if one.version.id in problems:
            with told_of(one.version.folder.parent):
                raise ManifestError(problems[one.version.id], path=one.version.folder)


@contextmanager
def told_of(folder: Path) -> Iterator[None]:
    """Let an error say that it is about the other side's folder."""
    try:
        yield
    except (ManifestError, FactsError, BaseMismatchError) as error:
        error.message = f"`{shown(folder)}`: {problem_of(error)}"
        if not isinstance(error, BaseMismatchError):
            error.hint = "nothing was taken; `reviver verify` there lists everything that is damaged"
        raise


def _stage(staging: Path, arrival: Arrival, pin: BasePin) -> list[str]:
    """Copy a version, check the copy from end to end, and give it its new name; returns what was left behind."""
    version = arrival.version
    source, target = version.folder, staging / version.name
    try:
        target.mkdir()
        entries = sorted(path.name for path in source.iterdir())
    except OSError as error:
        raise disk_error(error, target) from error
    for name, limit in (
        ("manifest.json", MAXIMUM_MANIFEST_BYTES),
        ("patch.safetensors", version.manifest.patch.size),
        ("facts.jsonl", MAXIMUM_FACTS_BYTES),
        ("results.jsonl", MAXIMUM_RESULTS_BYTES),
    ):
        if name in entries:
            _copy(source / name, target, limit=limit)
    copied = Version.open(target, name=version.name, root=staging)
    if copied.manifest != version.manifest:
        raise ManifestError(f"`{version.name}/manifest.json` changed while it was read", path=source)
    copied.patch().check_shapes({name: entry.shape for name, entry in pin.tensors.items()})
    for problem in tensor_problems(version.manifest, pin):
        raise ManifestError(f"`{version.name}/manifest.json`: {problem}", path=source)
    if not copied.withheld:
        copied.facts()
        copied.results()
    warnings = [
        f"`{shown(name)}` of {version.name} belongs to no version and was left behind"
        for name in entries
        if name not in _KNOWN_FILES
    ]
    if "evaluations" in entries:
        warnings += _stage_evaluations(source / "evaluations", target / "evaluations", arrival)
    manifest = replace(version.manifest, version=arrival.name, parent=arrival.parent)
    write_atomic(target / "manifest.json", manifest.to_json())
    return warnings


def _copy(source: Path, folder: Path, *, limit: int) -> None:
    """Copy a regular file of at most `limit` bytes."""
    with os.fdopen(open_regular(source, root=source.parent), "rb", buffering=0) as reading:
        left = limit
        try:
            with (folder / source.name).open("xb", buffering=0) as writing:
                while chunk := reading.read(min(CHUNK_BYTES, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        where = f"{folder.name}/{source.name}"
                        raise ManifestError(f"`{where}` is larger than {human_bytes(limit)}", path=source)
                    write_fully(writing, chunk)
        except OSError as error:
            raise disk_error(error, folder / source.name) from error


def _stage_evaluations(source: Path, target: Path, arrival: Arrival) -> list[str]:
    """Write the measurements of a version again, with its new name; returns what was left behind."""
    if source.is_symlink() or not source.is_dir():
        raise ManifestError(f"`{arrival.version.name}/evaluations` is not a folder", path=source)
    target.mkdir()
    warnings = []
    for path in sorted(source.iterdir()):
        where = f"{arrival.version.name}/evaluations/{path.name}"
        if _SUITE_FILE.fullmatch(path.name) is None:
            warnings.append(f"`{shown(where)}` is no evaluation and was left behind")
            continue
        found = Evaluation.from_json(read_regular(path, limit=MAXIMUM_EVALUATION_BYTES), where)
        if found.version_id != arrival.version.id or f"{found.suite}.json" != path.name:
            raise ManifestError(f"`{shown(where)}` measures another version", path=path)
        write_atomic(target / path.name, replace(found, version=arrival.name).to_json())
    return warnings


def merge_tags(mine: Mapping[str, str], theirs: Mapping[str, str], ids: set[str]) -> tuple[dict[str, str], list[str]]:
    """Return the tags of both sides, and one line for each that means different versions; mine wins.

    Args:
        ids: of the versions that are here; a tag of any other is left out.
    """
    merged = dict(mine)
    warnings = []
    for name, id in theirs.items():
        if id in ids and merged.setdefault(name, id) != id:
            warnings.append(
                f"the tag `{name}` names the version {id[:12]} there and {merged[name][:12]} here, which stays"
            )
    return dict(sorted(merged.items())), warnings
