"""`reviver status`: where the workspace stands, what is missing or was touched, and which command is next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import ReviverError
from reviver.history.intent import checkpoint_names
from reviver.history.lock import Holder, current_holder
from reviver.history.manifest import BASE_NAME
from reviver.history.names import read_tags
from reviver.history.stamps import files_below, read_stamps
from reviver.history.untrusted import problem_of, shown
from reviver.history.version import Version
from reviver.history.workspace import Workspace

if TYPE_CHECKING:
    from reviver.checkpoint.pin import BasePin


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchedPath:
    """A file that is not as it was written; `what` is `missing`, `size`, `time` or `extra`.

    Where the whole folder was written for another version of the same name, `path` is `.` and `what` is `version`.
    """

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseStatus:
    """The base, as pinned."""

    model: str
    revision: str | None
    folder: str
    fingerprint: str
    edited: tuple[str, ...]
    """The tensors that `init` prepared."""
    touched: tuple[TouchedPath, ...]
    spectra_missing: tuple[str, ...]
    """Edited tensors without a spectral basis."""
    statistics_missing: tuple[str, ...]
    """Edited tensors without a second moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStatus:
    """The checkpoint of one version; `state` is `present`, `missing` or `touched`."""

    version: str
    state: str
    touched: tuple[TouchedPath, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """What `status` found; sizes and times only, nothing was hashed."""

    workspace: Path
    base: BaseStatus | None
    """None where `init` has not got that far."""
    head: str
    head_message: str | None
    facts: int
    """How many facts were applied along the head's chain."""
    versions: int
    checkpoints: tuple[CheckpointStatus, ...]
    problems: tuple[str, ...]
    """What keeps the workspace from being used as it is, one line each."""
    writer: Holder | None
    """Who is writing to the workspace at this moment."""
    leftovers: tuple[str, ...]
    """What a killed process left half made; the next command that writes removes it."""
    rounds_kept: int
    """Finished rounds of an `apply` that was interrupted: run again, it goes on from there; another one removes them."""
    clean: bool
    """Nothing is touched, damaged or left over (a checkpoint that was never written is no fault)."""
    next_step: str


def status(workspace_dir: Path) -> StatusReport:
    """Look at a workspace without reading weights.

    Raises:
        WorkspaceError: there is no workspace.
    """
    workspace = Workspace.open(workspace_dir)
    problems: list[str] = []
    base = _base_status(workspace, problems)
    versions = _readable_versions(workspace, problems)
    head, chain = _head(workspace, versions, problems)
    checkpoints = tuple(_checkpoint_status(workspace, version) for version in versions.values())
    known = {BASE_NAME, *workspace.version_names()}
    try:
        strangers = [name for name in checkpoint_names(workspace) if name not in known]
        problems += [f"`checkpoints/{name}` belongs to no version" for name in strangers]
        workspace.operations()
    except ReviverError as error:
        problems.append(problem_of(error))
    try:
        read_tags(workspace.tags_file)
    except ReviverError as error:
        problems.append(problem_of(error))
    # What a living process is making is no leftover.
    writer = current_holder(workspace.lock_file)
    half_made = workspace.leftovers() if writer is None else []
    leftovers = tuple(path.relative_to(workspace.root).as_posix() for path in half_made)
    touched = [one for one in checkpoints if one.state == "touched"]
    return StatusReport(
        workspace=workspace.root,
        base=base,
        head=head,
        head_message=chain[-1].manifest.message if chain else None,
        facts=sum(version.manifest.facts.count for version in chain),
        versions=len(workspace.version_names()),
        checkpoints=checkpoints,
        problems=tuple(problems),
        writer=writer,
        leftovers=leftovers,
        rounds_kept=0 if writer is not None else len(list(workspace.rounds.glob("*.json"))),
        clean=not (problems or leftovers or touched or base is None or base.touched),
        next_step=_next_step(workspace, base, head, bool(versions), checkpoints, problems),
    )


def _base_status(workspace: Workspace, problems: list[str]) -> BaseStatus | None:
    from reviver.checkpoint.pin import touched

    if not workspace.base_file.exists():
        return None
    try:
        pin: BasePin = workspace.pin()
    except ReviverError as error:
        problems.append(problem_of(error))
        return None
    return BaseStatus(
        model=pin.model,
        revision=pin.revision,
        folder=pin.folder,
        fingerprint=pin.fingerprint,
        edited=tuple(pin.edited),
        touched=tuple(TouchedPath(path=file.path, what=file.what) for file in touched(pin)),
        spectra_missing=tuple(name for name in pin.edited if not workspace.spectrum_file(name).is_file()),
        statistics_missing=tuple(name for name in pin.edited if not workspace.statistics_file(name).is_file()),
    )


def _readable_versions(workspace: Workspace, problems: list[str]) -> dict[str, Version]:
    versions = {}
    for name in workspace.version_names():
        try:
            versions[name] = Version.open(workspace.edits / name, name=name, root=workspace.edits)
        except ReviverError as error:
            problems.append(problem_of(error))
    return versions


def _head(workspace: Workspace, versions: Mapping[str, Version], problems: list[str]) -> tuple[str, list[Version]]:
    try:
        head = workspace.head()
    except ReviverError as error:
        problems.append(problem_of(error))
        return BASE_NAME, []
    chain: list[Version] = []
    name = head
    while name != BASE_NAME:
        if name not in versions:
            what = "the head" if name == head else f"`{chain[-1].name}` stands on"
            problems.append(f"{what} {'is ' if name == head else ''}`{name}`, which is missing or damaged in `edits/`")
            break
        chain.append(versions[name])
        name = versions[name].parent
    return head, chain[::-1]


def _checkpoint_status(workspace: Workspace, version: Version) -> CheckpointStatus:
    folder = workspace.checkpoint(version.name)
    if not folder.is_dir():
        return CheckpointStatus(version=version.name, state="missing")
    stamps = read_stamps(workspace.stamps, version.name)
    if stamps.id not in (None, version.id):
        # Another version has come to the name since, as by `git switch`; what is here was written for the former.
        return CheckpointStatus(version=version.name, state="touched", touched=(TouchedPath(path=".", what="version"),))
    touched = []
    expected = {file.path: file.size for file in version.manifest.files}
    for path, size in sorted(expected.items()):
        try:
            state = (folder / path).stat()
        except OSError:
            touched.append(TouchedPath(path=path, what="missing"))
            continue
        if state.st_size != size:
            touched.append(TouchedPath(path=path, what="size"))
        elif path in stamps.files and state.st_mtime_ns != stamps.files[path][1]:
            touched.append(TouchedPath(path=path, what="time"))
    touched += [TouchedPath(path=path, what="extra") for path in files_below(folder) if path not in expected]
    return CheckpointStatus(version=version.name, state="touched" if touched else "present", touched=tuple(touched))


def _next_step(
    workspace: Workspace,
    base: BaseStatus | None,
    head: str,
    any_version: bool,
    checkpoints: Sequence[CheckpointStatus],
    problems: Sequence[str],
) -> str:
    """Return the one thing to do next; the first reason that holds wins."""
    if base is None and not problems:
        return "finish the workspace with `reviver init MODEL`"
    if problems:
        return "see what is damaged with `reviver verify`, and restore it with git or from the Hub"
    if base is not None and any(file.what == "missing" for file in base.touched):
        if base.revision is None:
            return "files of the base are missing: put them back, or name their new place with `reviver init FOLDER`"
        return f"files of the base are missing: `reviver init {_init_argument(workspace)}` fetches them again"
    if base is not None and base.touched:
        return "the base was touched: `reviver verify` tells whether its bytes changed"
    if base is not None and (base.spectra_missing or base.statistics_missing):
        return f"prepare what is missing with `reviver init {_init_argument(workspace)}`"
    for one in checkpoints:
        if one.state == "touched":
            return f"`checkpoints/{one.version}` was touched: `reviver verify {one.version}` tells what changed"
    if not any_version:
        return "write facts into the model with `reviver apply FACTS`"
    if head == BASE_NAME:
        return "the head is the base: `reviver apply FACTS` makes a version on it, `reviver log` shows the others"
    if any(one.version == head and one.state == "missing" for one in checkpoints):
        return f"write the head's checkpoint with `reviver checkout {head}`"
    return f"see what changed with `reviver diff base {head}`, or share it with `reviver push org/name`"


def _init_argument(workspace: Workspace) -> str:
    return shown(workspace.pin().init_argument)
