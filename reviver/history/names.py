"""How a person names a version: `v3`, `head`, `base`, `head~2`, a tag, or the beginning of an id."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from reviver.errors import ManifestError, UsageError, VersionNotFoundError
from reviver.files import pretty_json, write_atomic
from reviver.history.untrusted import DAMAGED_HINT, Fields, load_json, read_regular
from reviver.text import printable

SCHEMA = 1
MAXIMUM_TAGS_BYTES = 16 * 1024 * 1024
SHORTEST_PREFIX = 4
_ANCESTOR = re.compile(r"(?P<name>.+)~(?P<steps>[0-9]{0,9})", re.DOTALL)
# Two dots part the ends of a range.
_TAG = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LIKE_VERSION = re.compile(r"[vV][0-9]+")
_PREFIX = re.compile(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}")


def split_ancestor(name: str) -> tuple[str, int]:
    """Return `("head", 2)` for `head~2`, `("head", 1)` for `head~` and `(name, 0)` for a name without `~`."""
    match = _ANCESTOR.fullmatch(name)
    return (match["name"], int(match["steps"] or 1)) if match else (name, 0)


def split_range(text: str) -> tuple[str, str] | None:
    """Return the names `A` and `B` of `A..B`; without A the base, without B the head; None for what is no range."""
    first, dots, last = text.partition("..")
    return (first or "base", last or "head") if dots and not last.startswith(".") else None


def is_tag_name(name: str) -> bool:
    """Tell whether a tag may go by this name: not what already names a version in another way, or looks like it."""
    return (
        _TAG.fullmatch(name) is not None
        and name.lower() not in ("head", "base")
        and _LIKE_VERSION.fullmatch(name) is None
        and _PREFIX.fullmatch(name.lower()) is None
    )


def check_tag_name(name: str) -> None:
    """Refuse a name that no tag may have.

    Raises:
        UsageError: it is no plain word, or already names a version in another way.
    """
    if is_tag_name(name):
        return
    if _TAG.fullmatch(name) is None:
        hint = "use letters, digits, `.` (one at a time), `_` and `-`, a letter or a digit first, at most 100 of them"
    else:
        hint = "`head`, `base`, `v3` and the beginning of an id name a version already; choose another word"
    raise UsageError(f"`{printable(name, 80)}` cannot be a tag", hint=hint, name=name)


def read_tags(path: Path) -> dict[str, str]:
    """Return the ids by tag from `edits/tags.json`; a tag names an id, so it survives a renumbering.

    Raises:
        ManifestError: the file is malformed.
    """
    if not os.path.lexists(path):
        return {}
    fields = Fields(load_json(read_regular(path, limit=MAXIMUM_TAGS_BYTES), "tags.json"), "tags.json")
    fields.schema(SCHEMA)
    fields.only(("schema", "tags"))
    tags = Fields(fields.mapping("tags"), "tags.json")
    names = fields.mapping("tags")
    for name in names:
        if not is_tag_name(name):
            raise ManifestError(f"`{printable(name, 80)}` in `tags.json` cannot be a tag", hint=DAMAGED_HINT)
    return {name: tags.sha256(name) for name in sorted(names)}


def write_tags(path: Path, tags: Mapping[str, str]) -> None:
    """Write `edits/tags.json`; the caller holds the workspace's lock."""
    write_atomic(path, pretty_json({"schema": SCHEMA, "tags": dict(tags)}))


def find_by_prefix(prefix: str, ids: Mapping[str, str]) -> str:
    """Return the name of the one version whose id begins with `prefix`.

    Args:
        ids: version names by id.

    Raises:
        VersionNotFoundError: none begins so, or several do.
    """
    found = [name for id, name in ids.items() if id.startswith(prefix)]
    if len(found) > 1:
        raise VersionNotFoundError(
            f"`{prefix}` is the beginning of {len(found)} ids ({', '.join(sorted(found)[:5])})",
            hint="give more characters of the id, or the version's name",
            name=prefix,
        )
    if not found:
        raise not_found(prefix, list(ids.values()))
    return found[0]


def find_tagged(tag: str, id: str, ids: Mapping[str, str]) -> str:
    """Return the name of the version that a tag names by its id.

    Args:
        ids: version names by id.

    Raises:
        VersionNotFoundError: the version is not here.
    """
    if id not in ids:
        raise VersionNotFoundError(
            f"the tag `{tag}` names the version {id[:12]}, which is not in `edits/`",
            hint="get it from where the tag came (`reviver import DIR`, git, or the Hub)",
            name=tag,
        )
    return ids[id]


def is_prefix(name: str) -> bool:
    """Tell whether `name` could be the beginning of an id, which is written in small letters."""
    return _PREFIX.fullmatch(name) is not None


def not_found(name: str, known: Sequence[str]) -> VersionNotFoundError:
    """Return the error for a name that names nothing, with the versions there are."""
    newest = max(known, key=lambda one: int(one[1:]), default=None)
    if newest is None:
        hint = "there is only the base yet; make the first version with `reviver apply FACTS`"
    else:
        hint = f"the newest version is `{newest}`; see `reviver log`"
    return VersionNotFoundError(f"version `{printable(name, 80)}` does not exist", hint=hint, name=name)
