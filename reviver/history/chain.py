"""What a chain of versions adds up to: its deltas by tensor, the facts it holds, the hashes of changed tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reviver.errors import BaseMismatchError, ManifestError
from reviver.history.untrusted import shown
from reviver.history.version import Version

if TYPE_CHECKING:
    from reviver.checkpoint.delta import Delta
    from reviver.checkpoint.pin import BasePin
    from reviver.facts.fact import Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFact:
    """A fact as the end of a chain holds it, and the version that set it last."""

    fact: Fact
    version: str


def check_chain(chain: Sequence[Version], fingerprint: str) -> None:
    """Check that a chain stands on this base, and that every id follows from its content and from the id below it.

    Args:
        chain: from `Workspace.chain`, oldest first.
        fingerprint: the base pin's.

    Raises:
        BaseMismatchError: a version was made on another base.
        ManifestError: an id does not follow: the manifest or one below it was changed after it was made.
    """
    below = fingerprint
    for version in chain:
        if version.manifest.base.fingerprint != fingerprint:
            raise BaseMismatchError(
                f"{version.name} was made on another base, {shown(version.manifest.base.model)}",
                hint="use it in the workspace of that base",
                version=version.name,
            )
        if version.id != version.manifest.expected_id(below):
            raise ManifestError(
                f"the id of {version.name} does not follow from its content and its parent",
                hint=f"restore `edits/{version.name}` with git; `reviver verify` lists everything that is damaged",
                version=version.name,
            )
        below = version.id


def chain_deltas(chain: Sequence[Version], pin: BasePin) -> dict[str, list[Delta]]:
    """Return what a chain adds to every tensor it changes, oldest first: the base plus their sum is the version.

    Every patch is checked against its manifest, the chain of ids, and the shapes of the base's tensors.

    Raises:
        BaseMismatchError, ManifestError: as `check_chain`, `Version.patch` and `Patch.check_shapes`.
    """
    check_chain(chain, pin.fingerprint)
    shapes = {name: entry.shape for name, entry in pin.tensors.items()}
    deltas: dict[str, list[Delta]] = {}
    for version in chain:
        patch = version.patch()
        patch.check_shapes(shapes)
        for name, delta in patch.deltas().items():
            deltas.setdefault(name, []).append(delta)
    return deltas


def known_facts(chain: Iterable[Version]) -> dict[tuple[str, str], KnownFact]:
    """Return the facts that a chain holds at its end, by subject and prompt; a later version's answer wins.

    Raises:
        ManifestError, FactsError: a file of facts is missing, damaged or forged.
    """
    known: dict[tuple[str, str], KnownFact] = {}
    for version in chain:
        for fact in version.facts():
            # Taken out first, so that the order is that of the latest change.
            known.pop(fact.key, None)
            known[fact.key] = KnownFact(fact=fact, version=version.name)
    return known


def result_hashes(chain: Iterable[Version]) -> Mapping[str, str]:
    """Return the hash that each changed tensor has at the end of a chain, as its manifests say."""
    return {tensor.name: tensor.result_sha256 for version in chain for tensor in version.manifest.tensors}


def common_length(one: Sequence[Version], other: Sequence[Version]) -> int:
    """Return how many versions two chains share at their beginning."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left.name != right.name:
            break
        length += 1
    return length
