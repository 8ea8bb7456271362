"""The last part of every verb that makes a version: patch, checkpoint, measurements, manifest, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin
from reviver.checkpoint.rewrite import Chain, WrittenCheckpoint, write_checkpoint
from reviver.facts.fact import Fact, facts_to_jsonl
from reviver.files import sha256_bytes, write_atomic
from reviver.history.checkpoints import drop_old_checkpoints
from reviver.history.intent import done
from reviver.history.manifest import (
    Manifest,
    ManifestBase,
    ManifestEditor,
    ManifestFacts,
    ManifestFile,
    ManifestFilter,
    ManifestPatch,
    ManifestTensor,
)
from reviver.history.operations import made
from reviver.history.patch import write_patch
from reviver.history.results import FactResult, results_to_jsonl
from reviver.history.workspace import Workspace
from reviver.progress import Progress

if TYPE_CHECKING:
    from reviver.evaluation.outcomes import Summary


class Timer:
    """How long the phases of a verb take, in seconds by phase; a phase may come again and its times add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as the phase `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """What makes a version, known before anything of it is written.

    Attributes:
        verb: what makes it, for the operation log.
        parent: the name of the version that it stands on.
        deltas: the parent's deltas by tensor, oldest first (`chain_deltas`).
        changes: the patch: what it adds to each tensor.
        facts: the facts that the patch brings.
        editor: how the patch came to be.
        filter: what the patch was kept out of.
        rounds: the manifest's rounds.
        message: what the version is for.
    """

    verb: str
    parent: str
    deltas: Mapping[str, Sequence[Delta]]
    changes: Mapping[str, Delta]
    facts: Sequence[Fact]
    editor: ManifestEditor
    filter: ManifestFilter
    rounds: Sequence[Mapping[str, object]] = ()
    message: str = ""

    def chain(self) -> dict[str, list[Delta]]:
        """Return the new version's deltas by tensor: the parent's and its own."""
        chain = {name: list(kept) for name, kept in self.deltas.items()}
        for name, change in self.changes.items():
            chain[name] = [*chain.get(name, ()), change]
        return chain


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointChoice:
    """Whether and how checkpoints are written.

    Attributes:
        write: write one; without, the patch alone is made.
        link_mode: how unchanged shards are carried over; `auto` for the first mode that works.
        keep: how many checkpoints stay; None for all.
    """

    write: bool = True
    link_mode: str = "auto"
    keep: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on the bytes that were written.

    Attributes:
        tensors: what became of each tensor of the patch.
        results: what became of each fact.
        summary: shares over the facts.
        metrics: the same and what else was counted, for the manifest.
        environment: what the numbers may depend on.
    """

    tensors: Sequence[ManifestTensor]
    results: Sequence[FactResult] = ()
    summary: Summary | None = None
    metrics: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A version that now exists and is the head.

    Attributes:
        manifest: its manifest.
        measured: what `measure` returned.
        patch_bytes: size of the patch.
        checkpoint: where the checkpoint is, if one was written.
    """

    manifest: Manifest
    measured: Measured
    patch_bytes: int
    checkpoint: Path | None


def commit_version(
    workspace: Workspace,
    pin: BasePin,
    folder: CheckpointFolder,
    new: NewVersion,
    measure: Callable[[Chain, WrittenCheckpoint], Measured],
    *,
    checkpoints: CheckpointChoice,
    timer: Timer,
    progress: Progress,
    before_commit: Callable[[Manifest], None] | None = None,
) -> Committed:
    """Write and measure a version and make it the head, or leave nothing.

    Args:
        workspace: whose lock the caller may hold already.
        pin: the base.
        folder: the base's files.
        new: the version.
        measure: called with the version's deltas by tensor and with what was written, before the commit.
        checkpoints: whether a checkpoint is written, and how many stay.
        timer: told of the writing; its times go into the manifest.
        progress: told of the writing.
        before_commit: called with the finished manifest, for what must not be missing once the version exists.

    Raises:
        BaseMismatchError: the base is not what was pinned.
        NumericsError: a delta or a result is not finite.
        ManifestError: the patch is empty, or a value could not be read back.
        ResourceError: the disk is full or cannot be written to.
        UnfinishedError: the same, but the version exists.
        LockedError: another process is writing.
    """
    with workspace.draft(new.verb) as draft:
        chain = new.chain()
        with timer.phase("write"):
            size, digest = write_patch(draft.edits_folder / "patch.safetensors", new.changes)
            written = write_checkpoint(
                folder,
                pin,
                chain,
                draft.checkpoint_folder if checkpoints.write else None,
                link_mode=None if checkpoints.link_mode == "auto" else checkpoints.link_mode,
                progress=progress,
            )
        measured = measure(chain, written)
        lines = facts_to_jsonl(new.facts)
        write_atomic(draft.edits_folder / "facts.jsonl", lines)
        write_atomic(draft.edits_folder / "results.jsonl", results_to_jsonl(measured.results))
        manifest = Manifest.create(
            parent_id=workspace.version_id(new.parent),
            version=draft.name,
            parent=new.parent,
            base=ManifestBase(model=pin.model, revision=pin.revision, fingerprint=pin.fingerprint),
            editor=new.editor,
            filter=new.filter,
            facts=ManifestFacts(count=len(new.facts), sha256=sha256_bytes(lines)),
            patch=ManifestPatch(size=size, sha256=digest),
            tensors=measured.tensors,
            files=[
                ManifestFile(path=one.path, size=one.size, sha256=one.sha256, changed=one.changed)
                for one in written.files
            ],
            message=new.message,
            metrics=measured.metrics,
            rounds=new.rounds,
            environment=measured.environment,
            timings=timer.seconds,
        )
        write_atomic(draft.edits_folder / "manifest.json", manifest.to_json())
        if before_commit is not None:
            before_commit(manifest)
        draft.commit({"facts": len(new.facts), "message": new.message})
        with done(made(draft.name)):
            drop_old_checkpoints(workspace, checkpoints.keep, newest=draft.name)
    return Committed(
        manifest=manifest,
        measured=measured,
        patch_bytes=size,
        checkpoint=workspace.checkpoint(draft.name) if checkpoints.write else None,
    )
