"""`reviver verify [V]`: the proof that history, files and weights are what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import ReviverError
from reviver.history.intent import checkpoint_names
from reviver.history.manifest import BASE_NAME
from reviver.history.names import read_tags
from reviver.history.untrusted import problem_of
from reviver.history.verification import (
    Finding,
    HashedFiles,
    check_base,
    check_checkpoint,
    check_history,
    check_rebuild,
    rebuild,
)
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress

if TYPE_CHECKING:
    from reviver.checkpoint.pin import BasePin


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedVersion:
    """What was proven of one version."""

    version: str
    checkpoint: bool
    """Whether a checkpoint was there to be read."""
    rebuilt: bool
    """Whether its tensors and shards were rebuilt from base and patches."""
    tensors: int
    """How many tensors were rebuilt and compared."""
    files: int
    """How many files of the checkpoint were read and compared."""
    withheld: bool
    """Whether the version came without its facts' text; the manifest's hash of them stands, and nothing to hold against it."""
    findings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The outcome; `ok` says whether everything held."""

    ok: bool
    versions: tuple[VerifiedVersion, ...]
    base_files: int
    """How many files of the base were read and compared."""
    findings: tuple[Finding, ...]


def verify(workspace_dir: Path, version: str | None = None, *, progress: Progress | None = None) -> VerifyReport:
    """Check everything, or one version and what it stands on, and go on to the end whatever is found.

    In this order: the base's files; the manifests, ids, facts and patches; every changed tensor and shard, rebuilt from
    base and patches in exact arithmetic; every file of the checkpoints.

    Args:
        version: as a person names it; None for all versions.

    Raises:
        WorkspaceError: there is no workspace, or its base was never pinned.
        VersionNotFoundError: nothing goes by this name.
    """
    workspace = Workspace.open(workspace_dir)
    progress = progress or NullProgress()
    pin = workspace.pin()
    findings: list[Finding] = []
    names, read = _names(workspace, version)
    if version is None:
        findings += _check_names(workspace)
    hashes = HashedFiles({})
    base_findings = check_base(pin, hashes, progress)
    findings += base_findings
    made_here = _made_here(workspace)
    versions: dict[str, Version] = {}
    sound: set[str] = set()
    for name in read:
        found, problems = check_history(workspace, name, pin, made_here=made_here)
        findings += problems
        if found is not None:
            versions[name] = found
        if not problems:
            sound.add(name)
    proven = []
    if BASE_NAME in names and workspace.checkpoint(BASE_NAME).is_dir():
        proven.append(_verify_base_checkpoint(workspace, pin, hashes, progress, findings))
    for name in names:
        if name in versions:
            chain = _chain(versions, name)
            usable = not base_findings and chain is not None and all(one.name in sound for one in chain)
            before = len(findings)
            checked = _verify_version(
                workspace, versions[name], chain if usable else None, pin, hashes, progress, findings
            )
            own = sum(finding.version == name for finding in findings[:before])
            withheld = versions[name].withheld and name not in made_here
            proven.append(replace(checked, withheld=withheld, findings=own + len(findings) - before))
    return VerifyReport(ok=not findings, versions=tuple(proven), base_files=len(pin.files), findings=tuple(findings))


def _names(workspace: Workspace, version: str | None) -> tuple[list[str], list[str]]:
    """Return the versions to prove, and those to read (with everything that they stand on)."""
    if version is None:
        names = workspace.version_names()
        return [BASE_NAME, *names], names
    found = workspace.resolve(version)
    read: list[str] = []
    name = found
    while name != BASE_NAME and (workspace.edits / name).is_dir():
        read.append(name)
        try:
            name = workspace.version(name).parent
        except ReviverError:
            break  # check_history tells what is wrong with it.
    return [found], read[::-1]


def _made_here(workspace: Workspace) -> set[str]:
    """Return the versions that came to be in this workspace, as far as its log remembers."""
    try:
        return {one.version for one in workspace.operations() if one.version is not None}
    except ReviverError:
        return set()  # _check_names tells what is wrong with the log.


def _check_names(workspace: Workspace) -> list[Finding]:
    """Check head, tags, log, and that every checkpoint belongs to a version."""
    findings = []

    def check(path: str, problem: str) -> None:
        findings.append(Finding(version=BASE_NAME, path=path, tensor=None, problem=problem))

    known = {BASE_NAME, *workspace.version_names()}
    try:
        head = workspace.head()
        if head not in known:
            check(".reviver/HEAD", f"it names {head}, which does not exist")
    except ReviverError as error:
        check(".reviver/HEAD", problem_of(error))
    try:
        workspace.operations()
        for name in checkpoint_names(workspace):
            if name not in known:
                check(f"checkpoints/{name}", "it belongs to no version")
    except ReviverError as error:
        check(".reviver/operations.jsonl", problem_of(error))
    try:
        read_tags(workspace.tags_file)
    except ReviverError as error:
        check("edits/tags.json", problem_of(error))
    return findings


def _chain(versions: dict[str, Version], name: str) -> list[Version] | None:
    chain = []
    while name != BASE_NAME:
        if name not in versions:
            return None
        chain.append(versions[name])
        name = versions[name].parent
    return chain[::-1]


def _verify_base_checkpoint(
    workspace: Workspace, pin: BasePin, hashes: HashedFiles, progress: Progress, findings: list[Finding]
) -> VerifiedVersion:
    expected = {file.path: (file.size, file.sha256) for file in pin.files}
    found = check_checkpoint(workspace, BASE_NAME, expected, pin.tensor_sha256, hashes, progress)
    findings += found
    return VerifiedVersion(
        version=BASE_NAME,
        checkpoint=True,
        rebuilt=False,
        tensors=0,
        files=len(expected),
        withheld=False,
        findings=len(found),
    )


def _verify_version(
    workspace: Workspace,
    version: Version,
    chain: Sequence[Version] | None,
    pin: BasePin,
    hashes: HashedFiles,
    progress: Progress,
    findings: list[Finding],
) -> VerifiedVersion:
    """Check one version's checkpoint; rebuild it where `chain` is given: the base and all it stands on are sound."""
    tensors = dict(pin.tensor_sha256)
    rebuilt = 0
    if chain is not None:
        try:
            written = rebuild(pin, chain, progress)
        except ReviverError as error:
            findings.append(Finding(version=version.name, path=None, tensor=None, problem=problem_of(error)))
            chain = None
        else:
            tensors.update(written.tensor_sha256)
            rebuilt = len(written.tensor_sha256)
            findings += check_rebuild(version, written)
    present = workspace.checkpoint(version.name).is_dir()
    if present:
        expected = {file.path: (file.size, file.sha256) for file in version.manifest.files}
        findings += check_checkpoint(workspace, version.name, expected, tensors, hashes, progress)
    return VerifiedVersion(
        version=version.name,
        checkpoint=present,
        rebuilt=chain is not None,
        tensors=rebuilt,
        files=len(version.manifest.files) if present else 0,
        withheld=False,
        findings=0,
    )
