"""`reviver verify [V]`: the proof that history, files, weights and the filter's guarantee are what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import ReviverError, UsageError
from reviver.history.chain import result_hashes
from reviver.history.intent import checkpoint_names
from reviver.history.manifest import BASE_NAME
from reviver.history.names import read_tags
from reviver.history.takes import branch_tips, unfounded_takes
from reviver.history.untrusted import problem_of, shown
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
    from reviver.verbs.guarantee import Guarantee

LEVELS = ("history", "bytes", "rebuild", "filter")
"""How far a proof goes, each level with those before it: `history` is all that lies in `edits/`, without a look at any weights;
`bytes` every file of the base and of the checkpoints by its hash; `rebuild` every version made again from base and patches;
`filter` the guarantee of every patch that claims one, computed anew from the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedVersion:
    """What was proven of one version."""

    version: str
    checkpoint: bool
    """Whether a checkpoint was there and was read."""
    rebuilt: bool
    """Whether its tensors and shards were rebuilt from base and patches."""
    tensors: int
    """How many tensors were rebuilt and compared."""
    files: int
    """How many files of the checkpoint were read and compared."""
    guarantee: Guarantee | None
    """What was proven of the filter; None where the proof did not go so far."""
    withheld: bool
    """Whether the version came without its facts' text; the manifest's hash of them stands, and nothing to hold against it."""
    findings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The outcome; `ok` says whether everything held, as far as `level` goes."""

    ok: bool
    level: str
    versions: tuple[VerifiedVersion, ...]
    base_files: int
    """How many files of the base were read and compared."""
    findings: tuple[Finding, ...]


def verify(
    workspace_dir: Path, version: str | None = None, *, level: str = LEVELS[-1], progress: Progress | None = None
) -> VerifyReport:
    """Check everything, or one version and what it stands on, and go on to the end whatever is found.

    In this order: manifests, ids, facts, patches, and what is taken back; the base's files; every file of the checkpoints;
    every changed tensor and shard, rebuilt from base and patches in exact arithmetic; the guarantee of the filter.

    Args:
        version: as a person names it; None for all versions.
        level: how far to go, one of `LEVELS`.

    Raises:
        UsageError: there is no such level.
        WorkspaceError: there is no workspace, or its base was never pinned.
        VersionNotFoundError: nothing goes by this name.
    """
    if level not in LEVELS:
        raise UsageError(
            f"`{shown(level)}` is no level of proof", hint=f"use `--level` with one of {', '.join(LEVELS)}"
        )
    workspace = Workspace.open(workspace_dir)
    names, read = _names(workspace, version)
    proof = _Proof(workspace, progress or NullProgress())
    if version is None:
        proof.findings += _check_names(workspace)
    proof.check_history(read)
    depth = LEVELS.index(level)
    if depth >= LEVELS.index("bytes"):
        proof.check_bytes(names)
    if depth >= LEVELS.index("rebuild"):
        proof.check_rebuilt(names)
    if depth >= LEVELS.index("filter"):
        proof.check_filter(read)
    return VerifyReport(
        ok=not proof.findings,
        level=level,
        versions=tuple(proof.verified(name) for name in names if name in proof.versions or name in proof.files),
        base_files=proof.base_files,
        findings=tuple(proof.findings),
    )


class _Proof:
    """What was found so far, level by level; each needs those before it.

    Attributes:
        findings: in the order in which they were found.
        base_files: how many files of the base were read.
        versions: those whose manifests can be read, by name, each after its parent.
        files: how many files were read of every checkpoint there is, by version.
    """

    def __init__(self, workspace: Workspace, progress: Progress) -> None:
        self._workspace = workspace
        self._progress = progress
        self._pin: BasePin = workspace.pin()
        self._made_here = _made_here(workspace)
        self._hashes = HashedFiles({})
        self._sound: set[str] = set()
        self._base_holds = False
        self._rebuilt: dict[str, int] = {}
        self._guarantees: Mapping[str, Guarantee] = {}
        self.findings: list[Finding] = []
        self.base_files = 0
        self.versions: dict[str, Version] = {}
        self.files: dict[str, int] = {}

    def check_history(self, names: Sequence[str]) -> None:
        """Check what lies in `edits/` of these versions, each after its parent."""
        for name in names:
            found, problems = check_history(self._workspace, name, self._pin, made_here=self._made_here)
            self.findings += problems
            if found is not None:
                self.versions[name] = found
            if not problems:
                self._sound.add(name)
        # A version that takes back what is not there still has its bytes, which are looked at further on.
        problems_by_id = unfounded_takes(branch_tips(self.versions))
        self.findings += [
            Finding(version=name, path=f"edits/{name}/manifest.json", tensor=None, problem=problems_by_id[one.id])
            for name, one in self.versions.items()
            if one.id in problems_by_id
        ]

    def check_bytes(self, names: Sequence[str]) -> None:
        """Check the files of the base, and of the checkpoints of these versions."""
        pin = self._pin
        found = check_base(pin, self._hashes, self._progress)
        self.findings += found
        self._base_holds, self.base_files = not found, len(pin.files)
        for name in names:
            if not self._workspace.checkpoint(name).is_dir():
                continue
            if name == BASE_NAME:
                expected = {file.path: (file.size, file.sha256) for file in pin.files}
            elif name in self.versions:
                expected = {file.path: (file.size, file.sha256) for file in self.versions[name].manifest.files}
            else:
                continue
            tensors = {**pin.tensor_sha256, **result_hashes(self._chain(name) or ())}
            self.findings += check_checkpoint(self._workspace, name, expected, tensors, self._hashes, self._progress)
            self.files[name] = len(expected)

    def check_rebuilt(self, names: Sequence[str]) -> None:
        """Rebuild each of these versions where the base and all that it stands on are sound."""
        for name in names:
            chain = self._sound_chain(name)
            if not chain:
                continue
            try:
                written = rebuild(self._pin, chain, self._progress)
            except ReviverError as error:
                self.findings.append(Finding(version=name, path=None, tensor=None, problem=problem_of(error)))
                continue
            self.findings += check_rebuild(self.versions[name], written)
            self._rebuilt[name] = len(written.tensor_sha256)

    def check_filter(self, names: Sequence[str]) -> None:
        """Measure the patches of these versions against the base, where both are sound."""
        sound = [self.versions[name] for name in names if self._base_holds and name in self._sound]
        if sound:
            from reviver.verbs.guarantee import check_guarantee

            self._guarantees, found = check_guarantee(self._pin, sound, self._progress)
            self.findings += found

    def verified(self, name: str) -> VerifiedVersion:
        """Return what was proven of a version, or of the base."""
        return VerifiedVersion(
            version=name,
            checkpoint=name in self.files,
            rebuilt=name in self._rebuilt,
            tensors=self._rebuilt.get(name, 0),
            files=self.files.get(name, 0),
            guarantee=self._guarantees.get(name),
            withheld=name in self.versions and self.versions[name].withheld and name not in self._made_here,
            findings=sum(finding.version == name for finding in self.findings),
        )

    def _sound_chain(self, name: str) -> list[Version] | None:
        """Return a version's chain; None where the base or anything in it is not sound."""
        chain = self._chain(name)
        if chain is None or not self._base_holds or any(one.name not in self._sound for one in chain):
            return None
        return chain

    def _chain(self, name: str) -> list[Version] | None:
        """Return a version's chain, oldest first; None where a version of it cannot be read."""
        chain = []
        while name != BASE_NAME:
            if name not in self.versions:
                return None
            chain.append(self.versions[name])
            name = self.versions[name].parent
        return chain[::-1]


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
