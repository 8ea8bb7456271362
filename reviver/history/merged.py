"""What a chain holds by way of merges and squashes, so that nothing is merged twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reviver.errors import ManifestError, VersionNotFoundError, WorkspaceError
from reviver.history.ledger import Ledger, taken_back
from reviver.history.version import Version

ChainOf = Callable[[str], Sequence[Version]]
"""Returns the chain of the version with an id, oldest first."""


def contents(chain: Sequence[Version], chain_of: ChainOf) -> set[str]:
    """Return the ids of all versions whose patches are in the sum at the end of a chain: its own, and what was merged or squashed.

    A merge that was taken back as a whole has brought nothing; one whose branch is not here is taken for its own patch only.
    """
    found: set[str] = set()
    waiting = [chain]
    while waiting:
        above = waiting.pop()
        ledger = Ledger(above)
        for version in above:
            found.add(version.id)
            source = _source(version)
            if source is not None and source not in found and not ledger.standings[version.id].gone:
                try:
                    waiting.append(chain_of(source))
                except VersionNotFoundError:
                    found.add(source)
    return found


def _source(version: Version) -> str | None:
    """Return the id of the version whose patches a merge or a squash added up; None for any other version."""
    editor = version.manifest.editor
    source = {"merge": editor.settings.get("merges"), "squash": editor.settings.get("to")}.get(editor.name)
    return source if isinstance(source, str) else None


def not_in(there: set[str], versions: Sequence[Version], common: Sequence[Version], chain_of: ChainOf) -> list[Version]:
    """Return the versions of one branch that are not in the sum of the other already.

    Raises:
        WorkspaceError: a merge or squash among them is there in part, or one takes back what is there under another name.
    """
    kept: list[Version] = []
    # What a version did to those below it must be what it would do without those that are there already.
    whole, rest = Ledger((*common, *versions)), Ledger(common)
    for version in versions:
        if version.id in there:
            continue
        source = _source(version)
        if source is not None:
            try:
                held = contents(chain_of(source), chain_of) - {one.id for one in common}
            except VersionNotFoundError:
                held = {source}
            own = held - {one.id for one in kept}
            if own and own <= there:
                continue
            if own & there:
                raise _in_part(version, "holds patches that the other branch has already, and others that it has not")
        what = "takes back, or brings back, what the other branch has by a merge of its own"
        try:
            rest.add(version.id, version.name, version.facts(), taken_back(version))
        except ManifestError as error:
            raise _in_part(version, what) from error
        if rest.effects[version.id] != whole.effects[version.id]:
            raise _in_part(version, what)
        kept.append(version)
    return kept


def _in_part(version: Version, what: str) -> WorkspaceError:
    return WorkspaceError(
        f"{version.name} {what}",
        hint="merge the other way round, or apply the missing facts with `reviver reapply`",
        version=version.name,
    )
