"""What a chain of versions adds up to: its deltas by tensor, the facts it holds, the hashes of changed tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from reviver.errors import BaseMismatchError, ManifestError
from reviver.history.ledger import KnownFact, known_facts
from reviver.history.manifest import BASE_NAME
from reviver.history.untrusted import shown
from reviver.history.version import Version

if TYPE_CHECKING:
    from reviver.checkpoint.delta import Delta
    from reviver.checkpoint.pin import BasePin

__all__ = ["KnownFact", "chain_deltas", "check_chain", "common_length", "known_facts", "result_hashes"]


def check_chain(chain: Sequence[Version], fingerprint: str) -> None:
    """Check that versions stand on this base, and that every id follows from its content and from the id below it.

    Args:
        chain: from `Workspace.chain`, oldest first; or any versions of which each comes after its parent.
        fingerprint: the base pin's.

    Raises:
        BaseMismatchError: a version was made on another base.
        ManifestError: an id does not follow: the manifest or one below it was changed after it was made.
    """
    ids = {BASE_NAME: fingerprint}
    for version in chain:
        check_link(version, ids[version.parent], fingerprint)
        ids[version.name] = version.id


def check_link(version: Version, parent_id: str, fingerprint: str) -> None:
    """Check one version of a chain; the arguments are the id of its parent and the base's fingerprint.

    Raises:
        BaseMismatchError, ManifestError: as `check_chain`.
    """
    if version.manifest.base.fingerprint != fingerprint:
        raise BaseMismatchError(
            f"{version.name} was made on another base, {shown(version.manifest.base.model)}",
            hint="use it in the workspace of that base",
            version=version.name,
        )
    if version.id != version.manifest.expected_id(parent_id):
        raise ManifestError(
            f"the id of {version.name} does not follow from its content and its parent",
            hint=f"restore `edits/{version.name}` with git; `reviver verify` lists everything that is damaged",
            version=version.name,
        )


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
