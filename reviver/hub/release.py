"""What a version is on the Hub: its checkpoint at the root, its chain in `edits/`, the card and SHA256SUMS.

Nothing here speaks to the network; a release is a list of files with their sizes, hashes and origins on this disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reviver.errors import CheckpointError, ManifestError
from reviver.files import safe_relative_path, sha256_file
from reviver.text import printable

if TYPE_CHECKING:
    from reviver.history.version import Version

CARD = "README.md"
SUMS = "SHA256SUMS"
# Of a version's folder only these are published; the second group holds the facts' text.
_ALWAYS = ("manifest.json", "patch.safetensors")
_WITH_FACTS = ("facts.jsonl", "results.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFile:
    """One file as it will stand in the repository."""

    path: str
    size: int
    sha256: str
    origin: Path | bytes
    """Where its bytes are: a file on this disk, or the bytes themselves."""
    base_path: str | None = None
    """Its path in the base's repository, where its bytes are the base's."""
    defining: bool = True
    """Whether it belongs to the version itself; the card, the hashes and the facts' text may come or go later."""

    def git_blob_id(self) -> str:
        """Return the SHA-1 by which git names these bytes, which is all that the Hub states of a small file."""
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        digest.update(self.origin if isinstance(self.origin, bytes) else self.origin.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Everything that one push publishes."""

    version: str
    """Also the name of the tag."""
    files: tuple[ReleaseFile, ...]
    """Sorted by path; SHA256SUMS is among them."""
    base_model: str | None = None
    """The Hub id from whose repository unchanged files can be copied, where the base came from the Hub."""
    base_revision: str | None = None


def place_of_base_file(path: str) -> str:
    """Return where a file of the base stands: its own path, or below `base/` where the release needs that path."""
    taken = path in (CARD, SUMS) or path.split("/", 1)[0] in ("edits", "base")
    return f"base/{path}" if taken else path


def checkpoint_files(version: Version, folder: Path) -> list[ReleaseFile]:
    """Return the files of a version's checkpoint, as its manifest lists them.

    Raises:
        CheckpointError: the folder, or a file of it, is missing or has another size than the manifest says.
    """
    again = f"write it again with `reviver checkout {version.name}`"
    if not folder.is_dir():
        raise CheckpointError(f"the checkpoint of `{version.name}` is not on this disk", hint=again, path=folder)
    hint = f"move `checkpoints/{version.name}` away and {again}"
    files = []
    for file in version.manifest.files:
        path = folder / safe_relative_path(file.path)
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError:
            size = None
        if size != file.size:
            what = "is missing" if size is None else f"has {size} bytes, not {file.size}"
            shown = printable(file.path, 100)
            raise CheckpointError(f"`{shown}` in the checkpoint of `{version.name}` {what}", hint=hint, path=path)
        files.append(
            ReleaseFile(
                path=place_of_base_file(file.path),
                size=file.size,
                sha256=file.sha256,
                origin=path,
                base_path=None if file.changed else file.path,
            )
        )
    return files


def edit_files(chain: Sequence[Version], *, include_facts: bool) -> list[ReleaseFile]:
    """Return the files of the history: manifest and patch of every version, the facts' text only if asked for.

    Raises:
        ManifestError: a file is missing, or is not the one that the manifest hashes.
    """
    files = []
    for version in chain:
        expected = {"patch.safetensors": version.manifest.patch.sha256, "facts.jsonl": version.manifest.facts.sha256}
        present = [name for name in _WITH_FACTS if (version.folder / name).exists()] if include_facts else []
        if include_facts:
            evaluations = sorted((version.folder / "evaluations").glob("*.json"))
            present += [f"evaluations/{path.name}" for path in evaluations if path.is_file() and not path.is_symlink()]
        for name in (*_ALWAYS, *present):
            path = version.folder / name
            if not path.is_file() or path.is_symlink():
                raise ManifestError(
                    f"`edits/{version.name}/{name}` is missing",
                    hint="restore it with git; see `reviver verify`",
                    path=path,
                )
            sha256 = sha256_file(path)
            if expected.get(name, sha256) != sha256:
                raise ManifestError(
                    f"`edits/{version.name}/{name}` is not the file that its manifest names",
                    hint="restore it with git; see `reviver verify`",
                    path=path,
                )
            files.append(
                ReleaseFile(
                    path=str(safe_relative_path(f"edits/{version.name}/{name}")),
                    size=path.stat().st_size,
                    sha256=sha256,
                    origin=path,
                    defining=name in _ALWAYS,
                )
            )
    return files


def manifest_file(version: Version) -> ReleaseFile:
    """Return the manifest of a version as it would stand in a repository."""
    data = (version.folder / "manifest.json").read_bytes()
    return inline_file(f"edits/{version.name}/manifest.json", data)


def inline_file(path: str, data: bytes) -> ReleaseFile:
    """Return a file that exists only in the release."""
    return ReleaseFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), origin=data, defining=False)


def with_sums(files: Iterable[ReleaseFile]) -> tuple[ReleaseFile, ...]:
    """Return the files and, last in the making, SHA256SUMS over all of them in the form that `sha256sum -c` reads."""
    ordered = sorted(files, key=lambda file: file.path)
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in ordered)
    return tuple(sorted([*ordered, inline_file(SUMS, lines.encode())], key=lambda file: file.path))


def read_sums(data: bytes) -> dict[str, str]:
    """Return the hashes by path from a SHA256SUMS that anybody may have written; other lines are passed over."""
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        digest, separator, path = line.partition("  ")
        if separator and len(digest) == 64 and all(character in "0123456789abcdef" for character in digest):
            found[path] = digest
    return found


def checked(file: ReleaseFile) -> ReleaseFile:
    """Return the file after its bytes were read and found to be the ones that the manifest promises.

    Raises:
        CheckpointError: they are not.
    """
    if isinstance(file.origin, bytes):
        return file
    if sha256_file(file.origin) != file.sha256:
        raise CheckpointError(
            f"`{printable(file.path, 100)}` was changed since the version was made",
            hint="`reviver verify` tells what is damaged and what to do about it",
            path=file.origin,
        )
    return replace(file, size=file.origin.stat().st_size)
