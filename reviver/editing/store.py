"""Derived matrices on disk: one safetensors file a tensor, with a record beside it that says which base it belongs to.

Everything here may be rebuilt. The record is written last, so that a file without one is a leftover and never read; a record
whose fingerprint is another tensor's is refused by name, since a foreign second moment would spoil an edit silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reviver.checkpoint.tensor_file import write_tensor_file
from reviver.errors import BaseMismatchError, WorkspaceError
from reviver.files import disk_error, fsync_folder, pretty_json, sha256_file, write_atomic

SCHEMA = 1


class MatrixStore:
    """Derived matrices, one file a tensor.

    Args:
        place: returns the file for a tensor's name, a safe one whatever the name (`Workspace.spectrum_file`).
        noun: what it holds, for messages.
    """

    def __init__(self, place: Callable[[str], Path], noun: str) -> None:
        self.place = place
        self.noun = noun

    def save(self, name: str, fingerprint: str, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
        """Save the matrices that belong to the tensor `name`, whose bytes hash to `fingerprint`.

        Raises:
            ResourceError: the disk is full or cannot be written to.
        """
        path = self.place(name)
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _, digest = write_tensors(partial, tensors)
            # The old record would vouch for the new bytes if it stayed.
            self._record_path(name).unlink(missing_ok=True)
            partial.replace(path)
            fsync_folder(path.parent)
        except OSError as error:
            raise disk_error(error, path) from error
        full = {"schema": SCHEMA, "tensor": name, "base_sha256": fingerprint, "sha256": digest, **record}
        write_atomic(self._record_path(name), pretty_json(full))

    def _record_path(self, name: str) -> Path:
        return self.place(name).with_suffix(".json")

    def record(self, name: str, fingerprint: str) -> Mapping[str, object] | None:
        """Return the record of the matrices of tensor `name`, or nothing where there is none.

        Raises:
            BaseMismatchError: they were computed from another base tensor.
            WorkspaceError: the record is damaged or of a newer schema.
        """
        path = self._record_path(name)
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise WorkspaceError(
                f"the record `{path}` is damaged", hint="delete it and run `reviver init MODEL` again"
            ) from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise WorkspaceError(
                f"the record `{path}` has a schema that this reviver does not read",
                hint="use the reviver that wrote it, or delete it and run `reviver init MODEL` again",
            )
        if record.get("base_sha256") != fingerprint or record.get("tensor") != name:
            raise BaseMismatchError(
                f"the {self.noun} of `{name}` belongs to another base",
                hint=f"delete `{path}` and run `reviver init MODEL` again",
                tensor=name,
            )
        return record

    def load(self, name: str, fingerprint: str) -> tuple[dict[str, Tensor], Mapping[str, object]] | None:
        """Return the matrices of tensor `name` and their record, or nothing where there are none.

        Raises:
            BaseMismatchError: they were computed from another base tensor.
            WorkspaceError: the file is damaged.
        """
        record = self.record(name, fingerprint)
        if record is None:
            return None
        path = self.place(name)
        # Without its record a matrix counts as missing, and `init` computes it.
        hint = f"delete `{self._record_path(name)}` and run `reviver init MODEL` again"
        try:
            if sha256_file(path) != record.get("sha256"):
                raise WorkspaceError(f"the {self.noun} of `{name}` was changed on disk", hint=hint)
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise WorkspaceError(f"the {self.noun} of `{name}` cannot be read", hint=hint) from error
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise WorkspaceError(f"the {self.noun} of `{name}` is not finite", hint=hint)
        return tensors, record


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write tensors as one safetensors file, atomically and durably; returns its size and SHA-256.

    Raises:
        ResourceError: the disk is full or cannot be written to.
    """
    return write_tensor_file(path, {key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()})
