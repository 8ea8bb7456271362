"""One model in memory that takes the values of one version after another, exactly as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from reviver.checkpoint.delta import Delta
from reviver.editing.base import open_base, open_pinned, put_version
from reviver.editing.model import EditableModel, choose_device
from reviver.editing.preparation import check_loaded
from reviver.errors import WorkspaceError
from reviver.history.chain import chain_deltas
from reviver.history.manifest import BASE_NAME
from reviver.history.workspace import Workspace
from reviver.settings import Settings


class VersionModel:
    """The model of a workspace, loaded once; it holds the base at first.

    Args:
        workspace: an initialised workspace.
        settings: of which device and dtype count.

    Attributes:
        model: the model in memory.
        version: the version whose values it holds.
        changed: names of the tensors that this version changes.

    Raises:
        WorkspaceError: the workspace is not prepared.
        BaseMismatchError: the base was touched since it was pinned.
        UnsupportedModelError, ResourceError: see `load_model`.
    """

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self.workspace = workspace
        self.pin = workspace.pin()
        if not self.pin.edited:
            raise WorkspaceError("this workspace is not prepared yet", hint="finish it with `reviver init MODEL`")
        self.folder = open_base(self.pin)
        self.device: torch.device = choose_device(settings.apply.device)
        self.model: EditableModel = open_pinned(self.pin, self.folder, settings, self.device)
        check_loaded(self.model, self.folder)
        self.version = BASE_NAME
        self.changed: tuple[str, ...] = ()

    def deltas(self, name: str) -> dict[str, list[Delta]]:
        """Return what the chain of a version adds to each tensor.

        Raises:
            VersionNotFoundError, ManifestError, BaseMismatchError: there is no such version, or it is damaged.
        """
        return chain_deltas(self.workspace.chain(name), self.pin)

    def put(self, name: str, deltas: Mapping[str, Sequence[Delta]] | None = None) -> EditableModel:
        """Put the bytes of a version into the model and return it.

        Args:
            name: of the version, resolved (`v3`, or `v0` for the base).
            deltas: its chain's, if the caller has read them already.
        """
        wanted = self.deltas(name) if deltas is None else deltas
        # What only the version before had changed goes back to the base's values.
        put_version(self.model, self.folder, {**{tensor: () for tensor in self.changed}, **wanted})
        self.version = name
        self.changed = tuple(wanted)
        return self.model
