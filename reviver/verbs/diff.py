"""`reviver diff A B`: facts, tensors and files that differ between two versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import WorkspaceError
from reviver.history.chain import check_chain
from reviver.history.comparison import (
    FactChange,
    FileChange,
    TensorChange,
    compare_facts,
    compare_files,
    compare_tensors,
    files_of,
)
from reviver.history.manifest import BASE_NAME
from reviver.history.version import Version, withheld_warnings
from reviver.history.workspace import Workspace
from reviver.progress import Progress
from reviver.text import plural

if TYPE_CHECKING:
    from reviver.checkpoint.pin import BasePin


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """What lies between version `before` and version `after`."""

    before: str
    after: str
    before_id: str
    after_id: str
    summary: str
    """One line."""
    facts_added: tuple[FactChange, ...]
    facts_changed: tuple[FactChange, ...]
    facts_dropped: tuple[FactChange, ...]
    tensors: tuple[TensorChange, ...]
    files: tuple[FileChange, ...]
    shards_changed: int
    shards_total: int
    bytes_changed: int
    """The size at B of all files that differ."""
    same: bool
    """Nothing differs."""
    warnings: tuple[str, ...]
    """What could not be told."""


def diff(
    workspace_dir: Path, before: str, after: str, *, measure: bool = True, progress: Progress | None = None
) -> DiffReport:
    """Compare two versions, whatever way the history leads from one to the other.

    Args:
        before: A, as a person names it.
        after: B.
        measure: compute norms that no manifest says; False leaves them None.

    Raises:
        WorkspaceError, VersionNotFoundError, ManifestError: no workspace, no such version, or a damaged one.
        BaseMismatchError: a version was made on another base.
    """
    workspace = Workspace.open(workspace_dir)
    a, b = workspace.resolve(before), workspace.resolve(after)
    known: dict[str, Version] = {}
    chain_a, chain_b = workspace.chain(a, known=known), workspace.chain(b, known=known)
    pin = _pin(workspace, needed=BASE_NAME in (a, b))
    for chain in (chain_a, chain_b):
        if chain:
            check_chain(chain, pin.fingerprint if pin is not None else chain[0].manifest.base.fingerprint)
    facts = compare_facts(chain_a, chain_b)
    tensors = compare_tensors(chain_a, chain_b, pin, measure=measure, progress=progress)
    files_a = files_of(chain_a[-1] if chain_a else None, pin)
    files_b = files_of(chain_b[-1] if chain_b else None, pin)
    files = compare_files(files_a, files_b)
    added = tuple(change for change in facts if change.before is None)
    changed = tuple(change for change in facts if change.before is not None and change.after is not None)
    dropped = tuple(change for change in facts if change.after is None)
    shards = {path for path in files_b if path.endswith(".safetensors")}
    shards_changed = sum(change.path in shards for change in files)
    fingerprint = (chain_a or chain_b)[0].manifest.base.fingerprint if chain_a or chain_b else ""
    same = not (facts or tensors or files)
    return DiffReport(
        before=a,
        after=b,
        before_id=chain_a[-1].id if chain_a else (pin.fingerprint if pin else fingerprint),
        after_id=chain_b[-1].id if chain_b else (pin.fingerprint if pin else fingerprint),
        summary=f"{a}..{b}: "
        + (
            "no difference"
            if same
            else _summary(len(added), len(changed), len(dropped), len(tensors), shards_changed, len(shards))
        ),
        facts_added=added,
        facts_changed=changed,
        facts_dropped=dropped,
        tensors=tuple(tensors),
        files=tuple(files),
        shards_changed=shards_changed,
        shards_total=len(shards),
        bytes_changed=sum(change.after_size or 0 for change in files),
        same=same,
        warnings=tuple(withheld_warnings(known.values())),
    )


def _summary(added: int, changed: int, dropped: int, tensors: int, shards: int, shards_total: int) -> str:
    facts = ", ".join(
        f"{count:,} {what}" for count, what in ((added, "added"), (changed, "changed"), (dropped, "dropped")) if count
    )
    count = plural(added + changed + dropped, "fact")
    head = f"{count} ({facts})" if facts else "no facts"
    return f"{head}, {plural(tensors, 'tensor')}, {shards:,} of {plural(shards_total, 'shard')}"


def _pin(workspace: Workspace, *, needed: bool) -> BasePin | None:
    """Return the pin; versions can be compared without one, as long as neither is the base."""
    try:
        return workspace.pin()
    except WorkspaceError:
        if needed:
            raise
        return None
