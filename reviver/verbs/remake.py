"""What the verbs share that make a version out of patches instead of facts: `revert`, `merge`, `squash`, `adopt`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.checkpoint.delta import Delta, LowRankDelta
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.rewrite import Chain, WrittenCheckpoint, check_base
from reviver.errors import WorkspaceError
from reviver.facts.checks import with_own_ids
from reviver.facts.fact import Fact
from reviver.history.algebra import Contribution
from reviver.history.chain import chain_deltas
from reviver.history.comparison import SignedDelta
from reviver.history.contributions import round_of
from reviver.history.ledger import Ledger, TakenBack, answer_to
from reviver.history.manifest import ManifestEditor, ManifestFilter, ManifestTensor
from reviver.history.summation import captured_fraction, norm_of_tensor
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.verbs.commit import CheckpointChoice, Committed, Measured, NewVersion, Timer, commit_version
from reviver.verbs.fit import one_patch
from reviver.verbs.former_head import FormerHead
from reviver.verbs.made import MadeReport, MakeChoice, Outcomes
from reviver.verbs.recorded import about


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the new version consists of.

    Attributes:
        verb: what makes it; also what stands as its editor.
        parts: what adds up to its patch.
        facts: the facts that it brings.
        takes: what it takes back of the versions below it.
        settings: which versions it was made from, by their ids.
        filter: what every part of the patch was kept out of.
        protected: the protected rank of each tensor of the patch; None without a filter.
        message: what it is for.
        nothing: what to say where the parts cancel, so that there is no patch.
        brings: the chain of another version that it stands for, beside its parent's.
    """

    verb: str
    parts: Sequence[Contribution]
    facts: Sequence[Fact]
    takes: Sequence[TakenBack]
    settings: Mapping[str, object]
    filter: ManifestFilter
    protected: Mapping[str, int | None]
    message: str
    nothing: str
    brings: Sequence[Version] = ()


class Remaker:
    """Makes one version on a parent; the caller holds the workspace's lock.

    Args:
        workspace: the workspace.
        parent: the version to stand on, resolved.
        settings: device, dtype, link mode, checkpoints to keep.
        choice: message, measuring, checkpoint.
        progress: told about the long parts.

    Raises:
        BaseMismatchError: the base is not what was pinned, or a version was made on another one.
        ManifestError, FactsError: a version below is damaged.
    """

    def __init__(
        self, workspace: Workspace, parent: str, settings: Settings, choice: MakeChoice, progress: Progress | None
    ) -> None:
        self.workspace = workspace
        self.parent = parent
        self.settings = settings
        self.choice = choice
        self.progress = progress or NullProgress()
        self.timer = Timer()
        self.pin = workspace.pin()
        check_base(self.pin)
        self.folder = CheckpointFolder.open(Path(self.pin.folder))
        self.chain: list[Version] = workspace.chain(parent)
        self.deltas = chain_deltas(self.chain, self.pin)
        self.ledger = Ledger(self.chain)
        self.warnings: list[str] = []

    def make(self, recipe: Recipe, check: Callable[[WrittenCheckpoint], None] | None = None) -> MadeReport:
        """Write, measure and commit.

        Args:
            recipe: what it consists of.
            check: called with what was written, before anything is measured or committed; raises where it will not do.

        Raises:
            WorkspaceError: there is nothing to add.
            UnsupportedModelError, ResourceError: the model cannot be loaded, or the disk is too small.
        """
        patch, losses = one_patch(recipe.parts, self.folder, self.deltas)
        if not patch.deltas:
            raise WorkspaceError(recipe.nothing, hint=f"`reviver show {self.parent}` tells what it holds")
        held = self.ledger.in_force()
        after = Ledger(self.chain)
        after.add("", "", recipe.facts, recipe.takes)
        effect, holds = after.effects[""], after.in_force()
        new = NewVersion(
            verb=recipe.verb,
            parent=self.parent,
            deltas=self.deltas,
            changes=patch.deltas,
            facts=recipe.facts,
            editor=ManifestEditor(
                name=recipe.verb,
                reference_url="",
                settings={**recipe.settings, "takes_back": [one.to_record() for one in recipe.takes]},
            ),
            filter=recipe.filter,
            rounds=[round_of(patch.labels, recipe.facts, after.facts_of(effect.lost), after.facts_of(effect.regained))],
            message=recipe.message,
        )
        dropped = [known.fact for key, known in held.items() if answer_to(holds, key) != known.fact.target_new]
        former = FormerHead.beside(self.workspace, (self.chain, recipe.brings))
        outcomes: list[Outcomes] = []

        def measure(chain: Chain, written: WrittenCheckpoint) -> Measured:
            if check is not None:
                check(written)
            with self.timer.phase("measure"):
                tensors = [
                    self._entry(name, delta, chain, written, recipe.protected.get(name))
                    for name, delta in patch.deltas.items()
                ]
                if not self.choice.measure:
                    return Measured(tensors=tensors)
                tensors = self._with_drift(tensors, chain)
                if not holds and not dropped:
                    return Measured(tensors=tensors)
                asked = _named(recipe.facts, [*(known.fact for known in holds.values()), *dropped])
                measured, outcome = self._ask(chain, tensors, asked[: len(holds)], asked[len(holds) :])
                outcomes.append(outcome)
                return measured

        committed = self._commit(new, measure)
        return MadeReport(
            version=committed.manifest.version,
            id=committed.manifest.id,
            parent=self.parent,
            facts_in_force=len(holds),
            facts_dropped=len(dropped),
            outcomes=outcomes[0] if outcomes else None,
            tensors=committed.manifest.tensors,
            exact=not any(loss.entries for loss in losses),
            losses=tuple(losses),
            patch_bytes=committed.patch_bytes,
            checkpoint=committed.checkpoint,
            seconds=dict(self.timer.seconds),
            warnings=(*self.warnings, *former.warnings(committed.manifest.version)),
        )

    def _commit(self, new: NewVersion, measure: Callable[[Chain, WrittenCheckpoint], Measured]) -> Committed:
        wanted = self.settings.apply
        return commit_version(
            self.workspace,
            self.pin,
            self.folder,
            new,
            measure,
            checkpoints=CheckpointChoice(
                write=self.choice.checkpoint, link_mode=wanted.link_mode, keep=wanted.keep_checkpoints
            ),
            timer=self.timer,
            progress=self.progress,
        )

    def _entry(
        self, name: str, delta: Delta, chain: Chain, written: WrittenCheckpoint, protected: int | None
    ) -> ManifestTensor:
        """Return what became of one tensor; drift and leakage are added where a model is at hand."""
        entry = self.folder.entry(name)
        norm, base_norm = delta.frobenius_norm(), norm_of_tensor(self.folder, name)
        return ManifestTensor(
            name=name,
            shard=entry.shard,
            dtype=entry.dtype,
            shape=(entry.shape[0], entry.shape[1]),
            patch_rank=delta.rank if isinstance(delta, LowRankDelta) else None,
            protected_rank=protected,
            norm=norm,
            norm_before_filter=norm,
            relative_norm=norm / base_norm if base_norm else 0.0,
            captured_fraction=captured_fraction(
                self.pin,
                name,
                self.deltas.get(name, ()),
                chain[name],
                [SignedDelta(1, delta)],
                progress=self.progress,
            ),
            leakage_after_rounding=None,
            subspace_similarity=None,
            base_sha256=self.pin.tensor_sha256[name],
            result_sha256=written.tensor_sha256[name],
        )

    def _with_drift(self, tensors: Sequence[ManifestTensor], chain: Chain) -> list[ManifestTensor]:
        from reviver.editing.model import choose_device
        from reviver.editing.preparation import Preparation
        from reviver.verbs.drift import with_drift

        preparation = Preparation(self.workspace, self.pin, self.folder)
        return with_drift(preparation, tensors, self.deltas, chain, choose_device(self.settings.apply.device))

    def _ask(
        self, chain: Chain, tensors: Sequence[ManifestTensor], holds: Sequence[Fact], dropped: Sequence[Fact]
    ) -> tuple[Measured, Outcomes]:
        """Ask the model about the facts on the parent and on the new version."""
        from reviver.editing.versions import VersionModel
        from reviver.evaluation.counterfact import neighbors_said
        from reviver.evaluation.outcomes import observe, summarize
        from reviver.verbs.entries import environment_of, metrics_of, result_of

        facts = [*holds, *dropped]
        versions = VersionModel(self.workspace, self.settings)
        base_said = neighbors_said(versions.model, holds)
        before = observe(versions.put(self.parent, self.deltas), facts)
        model = versions.put("", chain)
        after = observe(model, facts)
        results = [result_of(fact, old, new) for fact, old, new in zip(facts, before, after, strict=True)]
        count = len(holds)
        outcomes = Outcomes(
            before=summarize(before[:count], before[:count], base_said),
            after=summarize(before[:count], after[:count], base_said),
            results=tuple(results[:count]),
            dropped=tuple(results[count:]),
        )
        measured = Measured(
            tensors=tensors,
            results=results,
            summary=outcomes.after,
            metrics={**metrics_of(outcomes.after), "facts_dropped": len(dropped)},
            environment=environment_of(model),
        )
        return measured, outcomes


def _named(own: Sequence[Fact], asked: Sequence[Fact]) -> list[Fact]:
    """Return facts of several versions with ids that are unique among them; the new version's own keep theirs."""
    first = {about(fact) for fact in own}
    ordered = [*own, *(fact for fact in asked if about(fact) not in first)]
    named = {about(fact): fact for fact in with_own_ids(ordered)}
    return [named[about(fact)] for fact in asked]
