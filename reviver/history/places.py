"""Where everything of a workspace lies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Places:
    """The paths below a workspace's folder; nothing here looks at the disk."""

    root: Path

    @property
    def edits(self) -> Path:
        """The history: one folder a version."""
        return self.root / "edits"

    @property
    def checkpoints(self) -> Path:
        """The materialised versions."""
        return self.root / "checkpoints"

    @property
    def private(self) -> Path:
        """What is derived, or belongs to this machine."""
        return self.root / ".reviver"

    @property
    def settings_file(self) -> Path:
        """reviver.toml."""
        return self.root / "reviver.toml"

    @property
    def base_file(self) -> Path:
        """The pin of the base."""
        return self.private / "base.json"

    @property
    def head_file(self) -> Path:
        """The name of the current version."""
        return self.private / "HEAD"

    @property
    def lock_file(self) -> Path:
        """What a writing process locks."""
        return self.private / "lock"

    @property
    def pending_file(self) -> Path:
        """The operation that is being done."""
        return self.private / "pending.json"

    @property
    def operations_file(self) -> Path:
        """The operation log."""
        return self.private / "operations.jsonl"

    @property
    def spectra(self) -> Path:
        """Spectral bases, one file a tensor."""
        return self.private / "spectra"

    @property
    def statistics(self) -> Path:
        """Second moments, one file a tensor."""
        return self.private / "statistics"

    @property
    def memory(self) -> Path:
        """What sequential editors need from earlier rounds."""
        return self.private / "memory"

    @property
    def staging(self) -> Path:
        """Work that a later run goes on with; recovery removes only hidden `*.partial` entries from it."""
        return self.private / "staging"

    @property
    def sums(self) -> Path:
        """The running sums of second moments that are being computed."""
        return self.staging / "sums"

    @property
    def rounds(self) -> Path:
        """The finished rounds of an edit that is being made."""
        return self.staging / "rounds"

    @property
    def stamps(self) -> Path:
        """Sizes and times of the checkpoints' files, for `status`."""
        return self.private / "stamps"

    @property
    def arrivals(self) -> Path:
        """Where `import` makes versions ready; a leftover unless the intent to take them in is written."""
        return self.edits / ".import.partial"

    @property
    def tags_file(self) -> Path:
        """Ids by tag."""
        return self.edits / "tags.json"

    def spectrum_file(self, tensor: str) -> Path:
        """Return where the spectral basis of a tensor is kept."""
        return self.spectra / _file_name(tensor)

    def statistics_file(self, tensor: str) -> Path:
        """Return where the second moment of an edited tensor's keys is kept."""
        return self.statistics / _file_name(tensor)

    def memory_file(self, version_id: str, tensor: str) -> Path:
        """Return where a version's part of the editor's memory of one tensor is kept; ids are hexadecimal digits.

        The name of a `memory_draft` may stand for the id.
        """
        return self.memory / version_id / _file_name(tensor)

    def memory_draft(self, name: str) -> Path:
        """Return where the memory of a version that is being made lies until the version exists."""
        return self.memory / f".{name}.partial"

    def checkpoint(self, name: str) -> Path:
        """Return where the checkpoint of a version is, or would be."""
        return self.checkpoints / name


def _file_name(tensor: str) -> str:
    """Return a file's name for a tensor's: readable where it can be, never with a slash, never too long."""
    name = quote(tensor, safe=".-_", errors="surrogatepass")
    if len(name) > 200:
        name = f"{name[:120]}-{hashlib.sha256(tensor.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return f"{name}.safetensors"
