"""The proof of a version: its history hashes as it says, its files are what it lists, its bytes follow from the base.

Each level is one function that returns findings and never stops at the first. They go from what costs nothing to what
reads every weight: manifests and the chain of ids, files by their hash, tensors rebuilt from base and patches. What the filter
promises is mathematics on weights, and is proven beside the verb.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import ReviverError
from reviver.files import sha256_bytes, sha256_file
from reviver.history.manifest import BASE_NAME, MAXIMUM_MANIFEST_BYTES, Manifest
from reviver.history.stamps import files_below
from reviver.history.untrusted import problem_of, read_regular
from reviver.history.version import MAXIMUM_FACTS_BYTES, Version
from reviver.history.workspace import Workspace
from reviver.progress import Progress

if TYPE_CHECKING:
    from reviver.checkpoint.pin import BasePin
    from reviver.checkpoint.rewrite import WrittenCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    version: str
    """The version it belongs to; `v0` is the base."""
    path: str | None
    """The file, relative to the workspace (for the base: to its own folder)."""
    tensor: str | None
    problem: str


@dataclass(slots=True)
class HashedFiles:
    """SHA-256 of files that were read already; links to one file are read once."""

    known: dict[tuple[int, int], str]

    def of(self, path: Path, progress: Progress) -> str:
        """Return the SHA-256 of the file at `path`, through links."""
        state = path.stat()
        key = (state.st_dev, state.st_ino)
        if key not in self.known:
            with progress.task(path.name, total=state.st_size, unit="B") as task:
                self.known[key] = sha256_file(path, advance=task.advance)
        return self.known[key]


def check_base(pin: BasePin, hashes: HashedFiles, progress: Progress) -> list[Finding]:
    """Return which of the base's files are missing or not the pinned ones, by their bytes."""
    folder = Path(pin.folder)
    if not folder.is_dir():
        return [_finding(BASE_NAME, None, f"the base's folder `{folder}` is missing")]
    findings = []
    for file in pin.files:
        problem = compare_file(folder / file.path, file.size, file.sha256, hashes, progress)
        if problem is not None:
            findings.append(_finding(BASE_NAME, file.path, problem))
    return findings


def check_history(
    workspace: Workspace, name: str, pin: BasePin | None, *, made_here: Collection[str] = ()
) -> tuple[Version | None, list[Finding]]:
    """Check what lies in `edits/<name>`: manifest, id, place in the chain, facts, patch, results.

    Args:
        workspace: whose history it is.
        name: the version.
        pin: the base, if there is one.
        made_here: the versions that the operation log saw come to be. Of these neither facts nor results can be withheld.

    Returns:
        The version, or None where its manifest cannot be read at all; and the findings.
    """
    folder = workspace.edits / name

    def at(file: str) -> str:
        return f"edits/{name}/{file}"

    try:
        version = Version.open(folder, name=name, root=workspace.edits)
    except ReviverError as error:
        return None, [_finding(name, at("manifest.json"), problem_of(error))]
    findings = [_finding(name, at("manifest.json"), problem) for problem in _chain_problems(workspace, version, pin)]
    checks: list[tuple[str, Callable[[], object]]] = [("patch.safetensors", lambda: _check_patch(version, pin))]
    if name in made_here or not version.withheld:
        checks += [("facts.jsonl", lambda: _check_facts(version)), ("results.jsonl", version.results)]
    for file, check in sorted(checks, key=lambda one: one[0]):
        try:
            check()
        except ReviverError as error:
            findings.append(_finding(name, at(file), problem_of(error)))
    return version, findings


def _check_facts(version: Version) -> None:
    # The hash first: it tells a touched file from one that was never good.
    if sha256_bytes(read_regular(version.facts_file, limit=MAXIMUM_FACTS_BYTES)) == version.manifest.facts.sha256:
        version.facts()
    else:
        raise ReviverError("its bytes are not the ones that the manifest hashes")


def _check_patch(version: Version, pin: BasePin | None) -> None:
    patch = version.patch()
    if pin is not None:
        patch.check_shapes({name: entry.shape for name, entry in pin.tensors.items()})


def _chain_problems(workspace: Workspace, version: Version, pin: BasePin | None) -> Iterator[str]:
    manifest = version.manifest
    if pin is not None and manifest.base.fingerprint != pin.fingerprint:
        yield "it was made on another base"
    below: str | None = manifest.base.fingerprint
    if manifest.parent != BASE_NAME:
        below = None
        path = workspace.edits / manifest.parent / "manifest.json"
        try:
            data = read_regular(path, limit=MAXIMUM_MANIFEST_BYTES, root=workspace.edits)
            below = Manifest.from_json(data, where=f"{manifest.parent}/manifest.json").id
        except ReviverError as error:
            yield f"its parent {manifest.parent} cannot be read: {problem_of(error)}"
    if below is not None and manifest.id != manifest.expected_id(below):
        yield "its id does not follow from its content and its parent"
    if pin is not None:
        yield from tensor_problems(manifest, pin)


def tensor_problems(manifest: Manifest, pin: BasePin) -> Iterator[str]:
    """Yield what a manifest says of the base's tensors otherwise than the base has it."""
    for tensor in manifest.tensors:
        entry = pin.tensors.get(tensor.name)
        if entry is None:
            yield f"the base has no tensor {tensor.name}"
        elif (entry.dtype, tuple(entry.shape), entry.shard) != (tensor.dtype, tensor.shape, tensor.shard):
            yield f"it describes {tensor.name} otherwise than the base has it"
        elif pin.tensor_sha256[tensor.name] != tensor.base_sha256:
            yield f"it has another hash for the base's {tensor.name} than the base"


def check_checkpoint(
    workspace: Workspace,
    name: str,
    expected: Mapping[str, tuple[int, str]],
    tensors: Mapping[str, str],
    hashes: HashedFiles,
    progress: Progress,
) -> list[Finding]:
    """Check that `checkpoints/<name>` holds exactly the expected files, by their bytes.

    Args:
        expected: size and SHA-256 by path.
        tensors: SHA-256 of every tensor of the version by name; used to say which one a damaged shard lost.
    """
    folder = workspace.checkpoint(name)
    at = f"checkpoints/{name}"
    findings = []
    for path, (size, sha256) in sorted(expected.items()):
        problem = compare_file(folder / path, size, sha256, hashes, progress)
        if problem is None:
            continue
        findings.append(_finding(name, f"{at}/{path}", problem))
        if path.endswith(".safetensors"):
            findings += [
                Finding(version=name, path=f"{at}/{path}", tensor=tensor, problem=what)
                for tensor, what in _damaged_tensors(folder / path, path, tensors)
            ]
    for path in files_below(folder):
        if path not in expected:
            findings.append(_finding(name, f"{at}/{path}", "it does not belong to the version"))
    return findings


def _damaged_tensors(path: Path, shard: str, tensors: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the tensors of a damaged shard whose bytes differ; nothing where its header cannot be read."""
    import hashlib

    from reviver.checkpoint.header import read_header

    try:
        header = read_header(path, shard)
        with path.open("rb") as file:
            for entry in header.tensors:
                digest = hashlib.sha256()
                file.seek(entry.start)
                left = entry.nbytes
                while left and (chunk := file.read(min(left, 8 * 1024 * 1024))):
                    digest.update(chunk)
                    left -= len(chunk)
                if entry.name in tensors and tensors[entry.name] != digest.hexdigest():
                    yield entry.name, "its bytes are not the version's"
    except (ReviverError, OSError):
        return


def check_rebuild(version: Version, written: WrittenCheckpoint) -> list[Finding]:
    """Compare a version's manifest with what base and patches give.

    Args:
        written: from `rebuild`.
    """
    name = version.name
    findings = []
    for tensor in version.manifest.tensors:
        rebuilt = written.tensor_sha256.get(tensor.name)
        if rebuilt != tensor.result_sha256:
            findings.append(
                Finding(
                    version=name,
                    path=None,
                    tensor=tensor.name,
                    problem="rebuilt from base and patches it has another hash than the manifest",
                )
            )
    listed = {file.path: (file.size, file.sha256) for file in version.manifest.files}
    made = {file.path: (file.size, file.sha256) for file in written.files}
    for path in sorted(listed.keys() | made.keys()):
        if listed.get(path) != made.get(path):
            what = (
                "the manifest lists a file that the rebuilt version has not"
                if path not in made
                else "the manifest does not list this file of the rebuilt version"
                if path not in listed
                else "rebuilt from base and patches it has another hash than the manifest"
            )
            findings.append(_finding(name, f"checkpoints/{name}/{path}", what))
    return findings


def rebuild(pin: BasePin, chain: Sequence[Version], progress: Progress) -> WrittenCheckpoint:
    """Return the hashes of all files and changed tensors of a version, rebuilt from base and patches; writes nothing.

    Raises:
        ReviverError: the base or a patch cannot be used.
    """
    from reviver.checkpoint.folder import CheckpointFolder
    from reviver.checkpoint.rewrite import write_checkpoint
    from reviver.history.chain import chain_deltas

    base = CheckpointFolder.open(Path(pin.folder))
    return write_checkpoint(base, pin, chain_deltas(chain, pin), None, link_mode=None, progress=progress)


def compare_file(path: Path, size: int, sha256: str, hashes: HashedFiles, progress: Progress) -> str | None:
    """Return what is wrong with a file that should have this size and SHA-256; None where nothing is."""
    try:
        actual = path.stat().st_size
        if not path.is_file():
            return "it is not a file"
        if actual != size:
            return f"it has {actual:,} bytes instead of {size:,}"
        if hashes.of(path, progress) != sha256:
            return "its bytes were changed"
    except FileNotFoundError:
        return "it is missing" if not path.is_symlink() else "it is a link to a file that is gone"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def _finding(version: str, path: str | None, problem: str) -> Finding:
    return Finding(version=version, path=path, tensor=None, problem=problem)
