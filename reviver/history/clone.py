"""A history that came to this machine by itself, as `git clone` brings it: `edits/` without a head and without a log."""

from __future__ import annotations

import os

from reviver.history.chain import check_chain
from reviver.history.head import write_head
from reviver.history.workspace import Workspace


def take_up_history(workspace: Workspace, fingerprint: str) -> str | None:
    """Make the newest version the head where nothing says which is; the caller holds the lock.

    Args:
        fingerprint: of the base that the workspace is about to be pinned to.

    Returns:
        The head, or None where there are no versions or the workspace has a head of its own.

    Raises:
        BaseMismatchError: the history was made on another base; nothing was written.
        ManifestError, VersionNotFoundError: it is damaged, or not whole.
    """
    names = workspace.version_names()
    if not names or os.path.lexists(workspace.head_file) or workspace.operations():
        return None
    check_chain(workspace.chain(names[-1]), fingerprint)
    write_head(workspace, names[-1])
    return names[-1]
