"""What the head held before a version took its place that does not stand on it: nobody must lose that unawares."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from reviver.errors import ReviverError, VersionNotFoundError
from reviver.history.ledger import Ledger, taken_back
from reviver.history.manifest import BASE_NAME, version_number
from reviver.history.merged import contents
from reviver.history.untrusted import problem_of
from reviver.history.version import Version
from reviver.history.workspace import Workspace

_SHOWN = 5
_ADDED_UP = ("merge", "squash")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerHead:
    """The head as it was.

    Attributes:
        name: the version.
        left: what it held and the new version does not, oldest first.
        problem: why that cannot be told, if it cannot.
    """

    name: str
    left: tuple[str, ...] = ()
    problem: str | None = None

    @classmethod
    def beside(cls, workspace: Workspace, chains: Sequence[Sequence[Version]]) -> FormerHead:
        """Compare the head with what a new version is going to stand for.

        Args:
            workspace: whose lock the caller holds.
            chains: of the new version's parent, and of whatever else it brings.
        """
        head = workspace.head()
        if head == BASE_NAME or any(version.name == head for chain in chains for version in chain):
            return cls(name=head)
        try:
            return cls(name=head, left=tuple(_left(workspace, workspace.chain(head), chains)))
        except ReviverError as error:
            return cls(name=head, problem=problem_of(error))

    def warnings(self, new: str) -> Iterator[str]:
        """Yield what to tell a person now that `new` is the head."""
        if self.problem is not None:
            yield f"whether the new head, {new}, has everything that {self.name} had cannot be told: {self.problem}"
        elif self.left:
            verb, them = ("is", "it") if len(self.left) == 1 else ("are", "them")
            yield (
                f"the head was {self.name}: {_listed(self.left)} {verb} not in the new head, {new}; "
                f"`reviver merge {new} {self.name}` brings {them} in, `reviver undo` goes back to {self.name}"
            )


def _left(workspace: Workspace, head: Sequence[Version], chains: Sequence[Sequence[Version]]) -> Iterator[str]:
    """Yield the names of the versions whose patches the head has and these chains have not."""
    names = {version.id: version.name for version in _readable(workspace)} | {one.id: one.name for one in head}

    def chain_of(id: str) -> list[Version]:
        if id not in names:
            raise VersionNotFoundError(f"the version {id[:12]} is not here")
        return workspace.chain(names[id])

    held = {id for chain in chains for id in contents(chain, chain_of)}
    ledger = Ledger(head)
    left = contents(head, chain_of) - held
    for name in sorted((names[id] for id in left if id in names), key=version_number):
        if not _is_void(workspace.version(name), ledger, held):
            yield name


def _readable(workspace: Workspace) -> Iterator[Version]:
    for name in workspace.version_names():
        try:
            yield workspace.version(name)
        except ReviverError:
            continue  # A version that is damaged is missed only where it is needed.


def _is_void(version: Version, ledger: Ledger, held: Collection[str]) -> bool:
    """Tell whether nothing is lost with a version: what it did is undone, or is in the versions that it was added up from."""
    if version.manifest.editor.name in _ADDED_UP:
        return True
    standing = ledger.standings.get(version.id)
    if standing is not None and standing.gone and not standing.active:
        return True
    # A version that only takes back others has done so for nothing where these are not there.
    return version.manifest.editor.name == "revert" and not any(one.version in held for one in taken_back(version))


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN:,} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
