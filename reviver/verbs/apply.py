"""`reviver apply`: a batch of facts becomes a filtered patch, a checkpoint and a manifest, as one new version or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reviver.editing.memory import check_memory
from reviver.editing.ranks import ALONE, Ranks
from reviver.evaluation.gates import GateOutcome
from reviver.evaluation.outcomes import Summary
from reviver.facts.reader import read_facts
from reviver.history.manifest import ManifestTensor
from reviver.history.results import FactResult
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.text import plural
from reviver.verbs.edit import Edit
from reviver.verbs.gate import GateKeeper
from reviver.verbs.plan import ApplyPlan, check_disk, check_share
from reviver.verbs.terms import Terms

FAR = 3.0
"""Relative distance from the base at which `apply` warns. A small model of real text (README, "Measured") had 95 to 97 % of its
perplexity there, whichever editor and filter it came by, and 68 to 82 % at 6.
"""

FEW = 0.5
"""Share of the facts said afterwards below which `apply` warns: the model is then hardly edited where it can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyReport:
    """What an `apply` did.

    Attributes:
        version: the new version, now the head; None after a dry run.
        id: its id.
        plan: what was planned before it began.
        summary: shares over all facts, measured on the bytes that were written.
        tensors: per tensor: norms, captured fraction, similarity.
        results: per fact: probabilities and answers before and after.
        patch_bytes: size of the patch.
        checkpoint: where the checkpoint is, if one was written.
        rejected_file: where records that were set aside are kept.
        gates: the gates that the version met, with what was measured.
        seconds: by phase.
        warnings: what a person should know.
    """

    version: str | None
    id: str | None
    plan: ApplyPlan
    summary: Summary | None = None
    tensors: tuple[ManifestTensor, ...] = ()
    results: tuple[FactResult, ...] = ()
    patch_bytes: int = 0
    checkpoint: Path | None = None
    rejected_file: Path | None = None
    gates: tuple[GateOutcome, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyRequest:
    """What a person asks of `apply`, beside the settings.

    Attributes:
        facts: the file of facts.
        parent: the version to stand on.
        message: what the version is for.
        on_conflict: what becomes of contradictions within the file.
        skip_invalid: set records that cannot be used aside.
        dry_run: stop after the plan.
        checkpoint: write a checkpoint; without, the patch alone is made.
        gate: what the version has to meet, such as `es>=0.9,perplexity<=1.05x`.
        gate_text: a file of ordinary text for the gate on perplexity; without, the base writes its own.
    """

    facts: Path
    parent: str = "head"
    message: str = ""
    on_conflict: Literal["error", "last"] = "error"
    skip_invalid: bool = False
    dry_run: bool = False
    checkpoint: bool = True
    gate: str | None = None
    gate_text: Path | None = None


def apply(
    workspace_dir: Path,
    request: ApplyRequest,
    *,
    settings: Settings,
    announce: Callable[[ApplyPlan], None] | None = None,
    progress: Progress | None = None,
    processes: Ranks = ALONE,
) -> ApplyReport:
    """Solve for a batch of facts and commit the result as a new version.

    Args:
        workspace_dir: an initialised workspace.
        request: facts, parent, message.
        settings: editor, filter, rounds, device.
        announce: shown the plan before the work begins.
        progress: told about the long parts.
        processes: those of this run; the others follow this one.

    Raises:
        UsageError: the gate does not parse, or there are more processes than facts; nothing was loaded or written.
        FactsError: the facts cannot be used; nothing was loaded or written.
        CheckFailedError: the version misses a gate and was not made; what was measured is kept.
        BaseMismatchError: the base was touched since it was pinned.
        NumericsError: the update is not finite or beyond its limit; nothing was written.
        ResourceError: device, memory or disk are missing.
        UnfinishedError: the version is made, and the disk keeps the rest from being tidied up.
    """
    progress = progress or NullProgress()
    gate = GateKeeper(request.gate, request.gate_text)
    file = read_facts(request.facts, on_conflict=request.on_conflict, skip_invalid=request.skip_invalid)
    check_share(processes, file.facts)
    workspace = Workspace.open(workspace_dir)
    if request.dry_run:
        plan = Terms(workspace, file, request.parent, settings).plan(checkpoint=request.checkpoint, processes=processes)
        return ApplyReport(version=None, id=None, plan=plan, warnings=plan.warnings)
    with workspace.lock("apply"):
        terms = Terms(workspace, file, request.parent, settings)
        plan = terms.plan(checkpoint=request.checkpoint, processes=processes)
        if announce is not None:
            announce(plan)
        check_disk(plan)
        check_memory(plan.memory)
        edit = Edit(terms, gate, message=request.message, checkpoint=request.checkpoint, progress=progress)
        made = edit.run(plan, processes)
    return ApplyReport(
        version=made.manifest.version,
        id=made.manifest.id,
        plan=plan,
        summary=made.measured.summary,
        tensors=made.manifest.tensors,
        results=tuple(made.measured.results),
        patch_bytes=made.patch_bytes,
        checkpoint=made.checkpoint,
        rejected_file=edit.rejected_file,
        gates=gate.outcomes,
        seconds=dict(edit.timer.seconds),
        warnings=(
            *plan.warnings,
            *_lost_to_rounding(made.manifest.tensors, settings.apply.minimum_captured_fraction),
            *_few_took(made.measured.results),
            *_far_from_base(edit.distances),
        ),
    )


def _lost_to_rounding(tensors: Sequence[ManifestTensor], limit: float) -> Iterator[str]:
    """Warn where less than `limit` of an update got through; of the worst tensor."""
    low = [one for one in tensors if one.captured_fraction is not None and one.captured_fraction < limit]
    if low:
        worst = min(low, key=lambda one: one.captured_fraction or 0.0)
        yield (
            f"rounding to {worst.dtype} let only {worst.captured_fraction or 0.0:.0%} of the update of `{worst.name}` through; "
            "the patch itself is whole"
        )


def _few_took(results: Sequence[FactResult]) -> Iterator[str]:
    """Warn where most facts are not said."""
    said = sum(result.success for result in results)
    if said < FEW * len(results):
        yield (
            f"the model now says {said} of {plural(len(results), 'fact')}: `reviver doctor --facts FACTS` measures whether such "
            "facts are in reach, at which blocks and with which λ"
        )


def _far_from_base(distances: Mapping[str, float]) -> Iterator[str]:
    """Warn where the updates of all versions together have moved a tensor far; of the farthest."""
    name, distance = max(distances.items(), key=lambda item: item[1])
    if distance > FAR:
        yield (
            f"all versions together have moved `{name}` by {distance:.1f} times its norm: general abilities suffer from about "
            f"{FAR:g} times on; see what is left of them with `reviver eval head --suite perplexity`. A larger λ (alphaedit: "
            "`l2`) moves less: `reviver doctor --facts FACTS` tells which suits many edits"
        )
