"""`reviver merge A B`: a version on A with everything that B has and their common ancestor has not.

The patch is the sum of B's patches since the ancestor, so that the bytes are those of the base and of all patches of both
branches. Facts that the branches answer differently, or that one took back and the other set anew, are refused unless it is said
which wins; what the loser set is then left out, where a patch keeps its facts apart. What both branches took back of their common
history is taken back once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import UsageError, VersionNotFoundError, WorkspaceError
from reviver.facts.checks import with_own_ids
from reviver.history.algebra import key_similarity
from reviver.history.branches import Branches
from reviver.history.chain import check_chain
from reviver.history.contradictions import Contradiction, contradictions
from reviver.history.contributions import common_filter, protected_ranks
from reviver.history.untrusted import shown
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.progress import Progress
from reviver.settings import Settings
from reviver.text import plural
from reviver.verbs.made import MadeReport, MakeChoice
from reviver.verbs.remake import Recipe, Remaker

_SHOWN = 3
_SHOWN_ANGLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How far the keys that two branches edited lie in one another's way, in one tensor.

    Attributes:
        name: of the tensor.
        cosines: of the principal angles between the spans of both branches' keys, the largest first; None where a patch is dense.
        shared: Σ cos² over the number of directions of the smaller span: 0 for none in common, 1 for one within the other.
    """

    name: str
    cosines: tuple[float, ...] | None
    shared: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport(MadeReport):
    """What a merge did.

    Attributes:
        merged: B.
        ancestor: the last version that both stand on; `v0` is the base.
        versions: B's versions since then, whose patches were added.
        overlap: of the tensors that both branches edit.
        contradictions: facts that the branches answer differently, or that one took back and the other set anew.
        preferred: the version whose answers won; None where there were no contradictions.
        agreeing: how many facts both branches set alike; they are in the sum twice.
    """

    merged: str
    ancestor: str
    versions: tuple[str, ...]
    overlap: tuple[Overlap, ...]
    contradictions: tuple[Contradiction, ...]
    preferred: str | None
    agreeing: int


def merge(
    workspace_dir: Path,
    ours: str,
    theirs: str,
    *,
    settings: Settings,
    prefer: str | None = None,
    choice: MakeChoice | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Add to one version what another has since their common ancestor.

    Args:
        ours: A, the version to stand on.
        theirs: B.
        prefer: which of both wins where they contradict each other.

    Raises:
        UsageError: `prefer` is neither of them.
        VersionNotFoundError: nothing goes by a name.
        WorkspaceError: there is nothing to merge, or the branches contradict each other and nobody wins, or the loser's facts
            are not apart from others.
        BaseMismatchError, ManifestError: the base or a version is not what it was.
        UnsupportedModelError, ResourceError: the model cannot be loaded, or the disk is too small.
        LockedError: another process is writing.
    """
    workspace = Workspace.open(workspace_dir)
    choice = choice or MakeChoice()
    with workspace.lock("merge"):
        a, b = workspace.resolve(ours), workspace.resolve(theirs)
        wins = None if prefer is None else workspace.resolve(prefer)
        if wins is not None and wins not in (a, b):
            raise UsageError(
                f"`--prefer {shown(prefer or '')}` is neither {a} nor {b}", hint=f"use `--prefer {a}` or `{b}`"
            )
        remaker = Remaker(workspace, a, settings, choice, progress)
        chain_b = workspace.chain(b)
        branches = _branches(remaker, chain_b, a, b)
        clashes = contradictions(branches, chain_b)
        if clashes and wins is None:
            raise _contradicting(a, b, clashes)
        a_wins = wins != b
        set_by_loser = (branches.theirs if a_wins else branches.ours).set_by
        # A loser that only took a fact back has nothing to leave out: what the other one set stands above.
        losers = {key for one in clashes if (key := (one.subject, one.prompt)) in set_by_loser}
        union = branches.union(losers, a_wins=a_wins)
        overlap, agreeing = _overlap(branches, remaker), branches.agreeing()
        if agreeing:
            remaker.warnings.append(
                f"{plural(agreeing, 'fact')} set alike by both branches: the sum holds what was done for them twice"
            )
        id_of = workspace.version_id
        report = remaker.make(
            Recipe(
                verb="merge",
                parts=union.parts,
                facts=with_own_ids(union.facts),
                takes=union.takes,
                settings={
                    "merges": id_of(b),
                    "ancestor": id_of(branches.ancestor),
                    "prefers": id_of(wins) if clashes and wins is not None else None,
                },
                filter=common_filter(union.sources),
                protected=protected_ranks(union.sources),
                message=choice.message or f"Merge {b} into {a}",
                nothing=f"nothing of {b} is left to merge into {a}",
                brings=chain_b,
            )
        )
    return MergeReport(
        **report.values(),
        merged=b,
        ancestor=branches.ancestor,
        versions=tuple(version.name for version in branches.theirs.versions),
        overlap=overlap,
        contradictions=tuple(clashes),
        preferred=wins if clashes else None,
        agreeing=agreeing,
    )


def _branches(remaker: Remaker, chain_b: Sequence[Version], a: str, b: str) -> Branches:
    check_chain(chain_b, remaker.pin.fingerprint)
    # Versions that were made twice in the same way have one id, and one content.
    names = {version.id: version.name for version in remaker.workspace.versions()}

    def chain_of(id: str) -> list[Version]:
        if id not in names:
            raise VersionNotFoundError(
                f"the version {id[:12]} is not in `edits/`", hint="it may have been left out of a clone"
            )
        return remaker.workspace.chain(names[id])

    branches = Branches(remaker.chain, chain_b, chain_of)
    if not branches.theirs.versions:
        raise WorkspaceError(f"{a} has everything of {b} already", hint="there is nothing to merge")
    if not branches.ours.versions:
        raise WorkspaceError(
            f"{b} stands on {a} already",
            hint=f"there is nothing to merge; `reviver apply FACTS --from {b}` goes on from there",
        )
    return branches


def _overlap(branches: Branches, remaker: Remaker) -> tuple[Overlap, ...]:
    """Return how far the keys of both branches overlap in the tensors that both edit."""
    from reviver.editing.base import pinned_family

    transposed = pinned_family(remaker.pin, remaker.folder).transposed
    found = []
    ours, theirs = branches.ours.total.deltas, branches.theirs.total.deltas
    for name in sorted(ours.keys() & theirs.keys()):
        cosines = key_similarity(ours[name], theirs[name], transposed=transposed)
        if cosines is None or not cosines.size:
            found.append(Overlap(name=name, cosines=None, shared=None))
            continue
        shared = float((cosines**2).sum() / cosines.size)
        found.append(Overlap(name=name, cosines=tuple(map(float, cosines[:_SHOWN_ANGLES])), shared=shared))
    return tuple(found)


def _contradicting(a: str, b: str, clashes: Sequence[Contradiction]) -> WorkspaceError:
    texts = [
        f"`{shown(one.prompt.replace('{}', one.subject, 1))}` is {_said(one.ours)} in {one.ours_version} "
        f"and {_said(one.theirs)} in {one.theirs_version}"
        for one in clashes[:_SHOWN]
    ]
    more = f", and {len(clashes) - _SHOWN:,} more" if len(clashes) > _SHOWN else ""
    return WorkspaceError(
        f"{a} and {b} contradict each other on {plural(len(clashes), 'fact')}: {'; '.join(texts)}{more}",
        hint=f"say which wins with `--prefer {a}` or `--prefer {b}`",
        contradictions=list(clashes),
    )


def _said(answer: str | None) -> str:
    return "taken back" if answer is None else shown(answer)
