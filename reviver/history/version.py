"""One version of the history: its folder in `edits/`, its manifest, and what else lies beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import ManifestError
from reviver.files import sha256_bytes
from reviver.history.manifest import MAXIMUM_MANIFEST_BYTES, Manifest, version_number
from reviver.history.results import FactResult, find_results, read_results
from reviver.history.untrusted import DAMAGED_HINT, read_regular, shown
from reviver.text import plural

if TYPE_CHECKING:
    from reviver.facts.fact import Fact
    from reviver.history.patch import Patch

MAXIMUM_FACTS_BYTES = 1024 * 1024 * 1024


def withheld_warnings(versions: Iterable[Version]) -> list[str]:
    """Return what to tell a person about versions whose facts are withheld; nothing where there are none."""
    names = [version.name for version in versions if version.withheld]
    if not names:
        return []
    others = f" and {plural(len(names) - 1, 'other')}" if len(names) > 1 else ""
    return [f"the facts of {names[0]}{others} are withheld: they were published without their text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version that exists wholly; from `Workspace.version`."""

    name: str
    number: int
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, *, name: str, root: Path) -> Version:
        """Read the version `name` from its folder, which must lie below `root`.

        Raises:
            ManifestError: the folder is a link, the manifest is missing, malformed or belongs to another version.
        """
        if folder.is_symlink():
            raise ManifestError(f"`{shown(folder)}` is a link", hint=DAMAGED_HINT, path=folder)
        path = folder / "manifest.json"
        # A folder of `root` that is no link cannot lead out of it; following the whole path costs as much as reading.
        data = read_regular(path, limit=MAXIMUM_MANIFEST_BYTES, root=None if folder.parent == root else root)
        manifest = Manifest.from_json(data, where=f"{name}/manifest.json")
        if manifest.version != name:
            raise ManifestError(
                f"`{name}/manifest.json` is the manifest of {manifest.version}",
                hint=f"rename the folder back to `{manifest.version}`, or restore the file with git",
                path=path,
            )
        return cls(name=name, number=version_number(name), folder=folder, manifest=manifest)

    @property
    def id(self) -> str:
        """The manifest's id."""
        return self.manifest.id

    @property
    def parent(self) -> str:
        """The parent's name; `v0` is the base."""
        return self.manifest.parent

    @property
    def facts_file(self) -> Path:
        """The facts as applied, one a line."""
        return self.folder / "facts.jsonl"

    @property
    def patch_file(self) -> Path:
        """The factors."""
        return self.folder / "patch.safetensors"

    @property
    def results_file(self) -> Path:
        """Probabilities and answers before and after."""
        return self.folder / "results.jsonl"

    @property
    def withheld(self) -> bool:
        """Whether the facts' text is not here, nor what was measured for them, as in a history published without it."""
        return not (os.path.lexists(self.facts_file) or os.path.lexists(self.results_file))

    def facts(self) -> tuple[Fact, ...]:
        """Return the facts as applied.

        Raises:
            ManifestError: the file is missing, damaged, or not the one that the manifest hashes.
        """
        from reviver.facts.fact import facts_from_jsonl

        facts = tuple(facts_from_jsonl(self._facts_data(), name=f"{self.name}/facts.jsonl"))
        if len(facts) != self.manifest.facts.count:
            raise ManifestError(
                f"`{self.name}/facts.jsonl` holds {len(facts)} facts, its manifest says {self.manifest.facts.count}",
                hint=DAMAGED_HINT,
                path=self.facts_file,
            )
        return facts

    def find_facts(self, wanted: Callable[[str, str], bool]) -> tuple[Fact, ...]:
        """Return the facts for which `wanted(subject, prompt)` holds, in a fraction of the time that `facts` takes.

        Raises:
            ManifestError, FactsError: as `facts`; only the facts that are returned are looked at closely.
        """
        from reviver.facts.search import find_facts

        name = f"{self.name}/facts.jsonl"
        return find_facts(self._facts_data(), wanted, count=self.manifest.facts.count, name=name)

    def _facts_data(self) -> bytes:
        if self.withheld:
            raise ManifestError(
                f"the facts of {self.name} are withheld: the version was published without their text",
                hint=f"ask whoever published it for `edits/{self.name}/facts.jsonl`",
                path=self.facts_file,
            )
        data = read_regular(self.facts_file, limit=MAXIMUM_FACTS_BYTES)
        if sha256_bytes(data) != self.manifest.facts.sha256:
            raise ManifestError(
                f"`{self.name}/facts.jsonl` is not the file that its manifest names",
                hint="restore it with git; `reviver verify` lists everything that is damaged",
                path=self.facts_file,
            )
        return data

    def patch(self) -> Patch:
        """Return the patch, checked against the manifest's hash and tensors.

        Raises:
            ManifestError: the file is missing, malformed, or not the one that the manifest hashes.
        """
        from reviver.history.patch import Patch

        patch = Patch.open(self.patch_file)
        expected = self.manifest.patch
        if (patch.size, patch.sha256) != (expected.size, expected.sha256):
            raise ManifestError(
                f"`{self.name}/patch.safetensors` is not the file that its manifest names",
                hint="restore it with git; `reviver verify` lists everything that is damaged",
                path=self.patch_file,
            )
        described = {tensor.name: (tensor.shape, tensor.patch_rank) for tensor in self.manifest.tensors}
        held = {name: (patch.shape(name), patch.rank(name)) for name in patch.names}
        if held != described:
            raise ManifestError(
                f"`{self.name}/patch.safetensors` holds other tensors or shapes than its manifest describes",
                hint=DAMAGED_HINT,
                path=self.patch_file,
            )
        return patch

    def results(self) -> tuple[FactResult, ...]:
        """Return what was measured for each fact; nothing where results.jsonl is missing.

        Raises:
            ManifestError: the file is malformed.
        """
        if not self.results_file.exists():
            return ()
        return read_results(self.results_file)

    def find_results(self, ids: Collection[str]) -> dict[str, FactResult]:
        """Return what was measured for the facts with these ids, by id; nothing for those without a result.

        Raises:
            ManifestError: a line that is looked at is malformed.
        """
        if not self.results_file.exists():
            return {}
        return find_results(self.results_file, ids)
