"""What a version's patch contributes, read with the manifest's word on which component belongs to which fact.

The sum of a chain's patches is that of all pieces in force: of every fact that was applied and not taken back, and of every
patch that has none. A version that only takes back others has no piece of its own: its patch is what it did to theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from reviver.errors import WorkspaceError
from reviver.facts.fact import Fact
from reviver.history.algebra import Contribution, Label
from reviver.history.ledger import Key, Ledger, Piece, TakenBack
from reviver.history.manifest import ManifestFilter
from reviver.history.untrusted import shown
from reviver.history.version import Version

NO_FILTER = ManifestFilter(name="none", rank=None, energy=None)


def contribution(version: Version, ledger: Ledger) -> Contribution:
    """Return what a version's patch adds, each component with its label where the manifest keeps facts apart.

    Args:
        ledger: of a chain that the version belongs to.

    Raises:
        ManifestError: the patch is missing or damaged.
    """
    deltas = version.patch().deltas()
    labels = _labels(version, ledger)
    if labels is not None and any(tensor.patch_rank != len(labels) for tensor in version.manifest.tensors):
        labels = None
    return Contribution(deltas=deltas, labels=labels)


def _labels(version: Version, ledger: Ledger) -> tuple[Label | None, ...] | None:
    """Return the label of each component as the rounds name its fact; None where they don't, or name what is not there."""
    effect = ledger.effects[version.id]
    own = {id: Label(fact.key) for id, fact in ledger.standings[version.id].facts.items()}
    named = {
        "components": own,
        "taken_back": _by_id(ledger.facts_of(effect.lost), -1),
        "brought_back": _by_id(ledger.facts_of(effect.regained), 1),
    }
    labels: list[Label | None] = []
    for one in version.manifest.rounds:
        columns = {"components": one.get("components", one.get("facts"))}
        columns |= {name: one[name] for name in ("taken_back", "brought_back") if name in one}
        if not all(isinstance(ids, list) for ids in columns.values()):
            return None
        if not columns["components"] or len({len(ids) for ids in columns.values()}) > 1:
            return None
        for ids in zip(*columns.values(), strict=True):
            found = [(name, id) for name, id in zip(columns, ids, strict=True) if id is not None]
            if len(found) > 1 or any(not isinstance(id, str) or id not in named[name] for name, id in found):
                return None
            labels.append(named[found[0][0]][found[0][1]] if found else None)
    return tuple(labels) or None


def _by_id(facts: Iterable[Fact], sign: int) -> dict[str, Label]:
    """Return the labels of facts of versions below, by id; an id that two of them have names none."""
    found: dict[str, set[Key]] = {}
    for fact in facts:
        found.setdefault(fact.id, set()).add(fact.key)
    return {id: Label(next(iter(keys)), sign, own=False) for id, keys in found.items() if len(keys) == 1}


def round_of(
    labels: Sequence[Label | None] | None, own: Iterable[Fact], lost: Iterable[Fact], regained: Iterable[Fact]
) -> dict[str, Any]:
    """Return the manifest's one round of a version that was made from patches: which fact each component belongs to.

    Args:
        labels: of the patch's components; None where facts are not apart.
        own: the facts that the version brings.
        lost: the facts that it takes back.
        regained: the facts that it brings back.
    """
    facts = list(own)
    ids = {Label(fact.key): fact.id for fact in facts}
    taken = {label: id for id, label in _by_id(lost, -1).items()}
    brought = {label: id for id, label in _by_id(regained, 1).items()}
    return {
        "facts": [fact.id for fact in facts],
        "components": [label and ids.get(label) for label in labels or ()],
        "taken_back": [label and taken.get(label) for label in labels or ()],
        "brought_back": [label and brought.get(label) for label in labels or ()],
    }


def pieces_of(version: Version, ledger: Ledger, facts: Collection[str], *, body: bool) -> Contribution:
    """Return what a version does for some facts of its own, and, with `body`, what belongs to no fact at all.

    Args:
        facts: their ids.

    Raises:
        ManifestError: the patch is missing or damaged.
        WorkspaceError: the facts are not apart from others.
    """
    standing = ledger.standings[version.id]
    if version.manifest.editor.name == "revert":
        return Contribution(deltas={}, labels=())
    part = contribution(version, ledger)
    if body and len(facts) == len(standing.facts) and not standing.takes:
        return part
    keys = {standing.facts[id].key for id in facts}
    if part.labels is None or not all(map(part.holds, keys)):
        raise WorkspaceError(
            f"the patch of {version.name}, made by `{shown(version.manifest.editor.name)}`, does not keep its facts apart",
            hint=f"drop the whole patch with `reviver revert {version.name}`, then apply the facts that shall stay",
            version=version.name,
        )
    return part.chosen(lambda label: body if label is None else label.own and label.key in keys)


def undoing(taken: TakenBack, chain: Sequence[Version], ledger: Ledger) -> list[tuple[Version, Contribution]]:
    """Return what adds up to a patch that takes something back from the end of a chain, each part with the version it is of.

    Args:
        taken: of one of the chain's versions.
        chain: oldest first.
        ledger: its ledger; left as it is.

    Returns:
        Nothing where nothing would change.

    Raises:
        ManifestError: a patch is missing or damaged.
        WorkspaceError: a patch does not keep its facts apart.
    """
    versions = {version.id: version for version in chain}
    flips = Ledger(chain).take_back(taken)
    effect, own = ledger.effects[taken.version], ledger.pieces(taken.version)
    if (flips.lost, flips.regained) == (own | effect.regained, effect.lost):
        # Nothing has come between, so that the patch is taken back as it is, whether facts are apart in it or not.
        version = versions[taken.version]
        return [(version, contribution(version, ledger).negated())]
    lost, regained = all_pieces(flips.lost, chain, ledger), all_pieces(flips.regained, chain, ledger)
    return [*((version, part.negated()) for version, part in lost), *regained]


def all_pieces(
    pieces: Collection[Piece], chain: Sequence[Version], ledger: Ledger
) -> list[tuple[Version, Contribution]]:
    """Return what a chain's versions do for some pieces, by version; raises as `pieces_of`."""
    found = []
    for version in chain:
        touched = {fact for id, fact in pieces if id == version.id}
        if touched:
            found.append((version, pieces_of(version, ledger, touched - {""}, body="" in touched)))
    return found


def protected_ranks(versions: Iterable[Version]) -> dict[str, int | None]:
    """Return the protected rank that holds for the sum of several versions' patches, by tensor; None for no filter.

    The protected directions of a smaller rank are among those of a larger one.
    """
    ranks: dict[str, int | None] = {}
    for version in versions:
        for tensor in version.manifest.tensors:
            rank = tensor.protected_rank
            if tensor.name in ranks:
                other = ranks[tensor.name]
                rank = None if rank is None or other is None else min(rank, other)
            ranks[tensor.name] = rank
    return ranks


def common_filter(versions: Sequence[Version]) -> ManifestFilter:
    """Return the filter that the sum of several versions' patches passed: the weakest of theirs."""
    filters = [version.manifest.filter for version in versions]
    if all(one == filters[0] for one in filters):
        return filters[0]
    ranks = list(protected_ranks(versions).values())
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks) or not known:
        return NO_FILTER
    return ManifestFilter(name="revive", rank=min(known), energy=None)
