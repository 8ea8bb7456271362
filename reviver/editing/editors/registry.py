"""Which editors there are: the built-in ones, and those that other packages bring by the entry-point group `reviver.editors`.

An entry point names an `Editor`:

    [project.entry-points."reviver.editors"]
    mine = "my_package.mine:EDITOR"

A module is imported when its editor is asked for, so that a package that fails to import does not stand in the way of
the others.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from reviver.editing.editors.base import Editor
from reviver.errors import EditorError, UsageError
from reviver.text import printable

ENTRY_POINT_GROUP = "reviver.editors"
BUILT_IN = ("memit", "rect", "prune", "alphaedit", "nse", "ultraedit")


def editor_names() -> tuple[str, ...]:
    """Return the names of all editors, the built-in ones first; imports none of them."""
    return BUILT_IN + tuple(sorted(name for name in _entry_points() if name not in BUILT_IN))


def get_editor(name: str) -> Editor:
    """Return the editor of this name.

    Raises:
        UsageError: there is none.
        EditorError: it comes from another package that cannot be imported or that names something else than an
            editor, or two packages bring an editor of this name.
    """
    if name in BUILT_IN:
        return import_module(f"reviver.editing.editors.{name}").EDITOR  # type: ignore[no-any-return]
    points = _entry_points().get(name, [])
    if not points:
        near = difflib.get_close_matches(name, editor_names(), n=1)
        raise UsageError(
            f"there is no editor `{printable(name, 40)}`",
            hint=f"did you mean `{near[0]}`?"
            if near
            else f"use one of {', '.join(f'`{each}`' for each in editor_names())}",
            editor=name,
        )
    if len({point.value for point in points}) > 1:
        raise EditorError(
            f"several packages bring an editor `{name}`: {', '.join(sorted(_package(point) for point in points))}",
            hint="uninstall all but one of them",
            editor=name,
        )
    return _load(points[0])


def _load(point: EntryPoint) -> Editor:
    try:
        loaded = point.load()
    # Whatever a foreign module raises while it is imported is that package's failure, not ours.
    except Exception as error:
        raise EditorError(
            f"the editor `{point.name}` of the package `{_package(point)}` cannot be imported: "
            f"{printable(f'{type(error).__name__}: {error}'.splitlines()[0], 160)}",
            hint=f"repair or uninstall `{_package(point)}`, or use another `--editor`",
            editor=point.name,
        ) from error
    if not isinstance(loaded, Editor) or loaded.name != point.name:
        raise EditorError(
            f"the entry point `{point.name}` of the package `{_package(point)}` does not name an editor of that name",
            hint="it must name a `reviver.editing.editors.Editor` whose `name` is that of the entry point",
            editor=point.name,
        )
    return loaded


def _entry_points() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module
