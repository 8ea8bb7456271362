"""`reviver squash A..B`: one version on A whose patch is the sum of all from A (exclusive) up to B.

The factors are put side by side, which is exact: the bytes are B's. Where they would outgrow a tensor, the sum becomes a
float32 matrix that is fitted to B's bytes, and what it misses is reported. The versions that were squashed stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import UsageError, WorkspaceError
from reviver.facts.checks import with_own_ids
from reviver.history.chain import check_chain
from reviver.history.contributions import common_filter, contribution, protected_ranks
from reviver.history.ledger import Ledger
from reviver.history.names import split_range
from reviver.history.untrusted import shown
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.progress import Progress
from reviver.settings import Settings
from reviver.verbs.made import MadeReport, MakeChoice
from reviver.verbs.remake import Recipe, Remaker


@dataclass(frozen=True, slots=True, kw_only=True)
class SquashReport(MadeReport):
    """What a squash did.

    Attributes:
        squashed: the versions whose patches are in the sum, oldest first; where it is exact, the bytes are the last one's.
    """

    squashed: tuple[str, ...]


def squash(
    workspace_dir: Path,
    span: str,
    *,
    settings: Settings,
    choice: MakeChoice | None = None,
    progress: Progress | None = None,
) -> SquashReport:
    """Make one patch of several.

    Args:
        span: `A..B`; B stands on A, which is not part of it; without A from the base on, without B up to the head.

    Raises:
        UsageError: `span` is none.
        VersionNotFoundError: nothing goes by a name.
        WorkspaceError: B does not stand on A, or there is nothing between them to squash.
        BaseMismatchError, ManifestError: the base or a version is not what it was.
        UnsupportedModelError, ResourceError: the model cannot be loaded, or the disk is too small.
        LockedError: another process is writing.
    """
    ends = split_range(span)
    if ends is None:
        raise UsageError(
            f"`{shown(span)}` does not name two versions", hint="write `A..B`, for example `reviver squash v2..v5`"
        )
    workspace = Workspace.open(workspace_dir)
    choice = choice or MakeChoice()
    with workspace.lock("squash"):
        a, b = workspace.resolve(ends[0]), workspace.resolve(ends[1])
        remaker = Remaker(workspace, a, settings, choice, progress)
        chain_b = workspace.chain(b)
        squashed = _between(remaker, a, b, chain_b)
        ledger_b = Ledger(chain_b)
        check_chain(chain_b, remaker.pin.fingerprint)
        report = remaker.make(
            Recipe(
                verb="squash",
                parts=[contribution(version, ledger_b) for version in squashed],
                facts=with_own_ids(known.fact for known in ledger_b.set_by(squashed).values()),
                takes=Ledger(remaker.chain).lost_until(ledger_b),
                settings={
                    "from": remaker.chain[-1].id if remaker.chain else remaker.pin.fingerprint,
                    "to": squashed[-1].id,
                },
                filter=common_filter(squashed),
                protected=protected_ranks(squashed),
                message=choice.message or f"Squash {a}..{b}",
                nothing=f"the patches from {a} to {b} cancel each other: {b} is {a} to the byte",
                brings=chain_b,
            )
        )
    return SquashReport(
        **report.values(),
        squashed=tuple(version.name for version in squashed),
    )


def _between(remaker: Remaker, a: str, b: str, chain_b: Sequence[Version]) -> list[Version]:
    """Return the versions from A (exclusive) to B."""
    names = [version.name for version in chain_b]
    if names[: len(remaker.chain)] != [version.name for version in remaker.chain]:
        raise WorkspaceError(f"{b} does not stand on {a}", hint=f"`reviver show {b}` says what it stands on")
    squashed = list(chain_b[len(remaker.chain) :])
    if len(squashed) < 2:
        what = "there is nothing" if not squashed else f"there is only {squashed[0].name}"
        raise WorkspaceError(f"{what} between {a} and {b} to squash", hint="name a span of at least two versions")
    return squashed
