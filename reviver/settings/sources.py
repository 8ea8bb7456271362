"""The places where settings are read: `reviver.toml`, the environment, the command line.

Each function returns checked values by `section.key`, with the words that say where they come from.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from reviver.errors import SettingsError
from reviver.settings.check import checked, parsed
from reviver.settings.sections import EDITORS, SECTIONS, VARIABLE_PREFIX, all_fields, find_field, variable_name
from reviver.text import plural, printable

FILE_NAME = "reviver.toml"

_LARGEST_FILE = 1_000_000

Values = dict[str, tuple[object, str]]


def from_file(path: Path) -> Values:
    """Read `reviver.toml`; a file that is not there sets nothing.

    Raises:
        SettingsError: it cannot be read, or a setting in it will not do; `problems` names all of them.
    """
    text, tables = _read(path)
    values: Values = {}
    problems: list[str] = []
    for section, table in tables.items():
        if section == EDITORS and isinstance(table, dict):
            problems += [
                f"line {_line_of(text, section, name)}: `{printable(name, 40)}` must be a section [{EDITORS}.NAME]"
                for name, given in table.items()
                if not isinstance(given, dict)
            ]
            continue
        if section not in SECTIONS or not isinstance(table, dict):
            problems.append(_unknown_section(text, section))
            continue
        for key, value in table.items():
            name = f"{section}.{key}"
            where = f"line {_line_of(text, section, key)}"
            try:
                values[name] = (checked(name, value, f"`{key}` in [{section}]"), f"`{key}` in `{FILE_NAME}`")
            except (KeyError, ValueError) as error:
                problems.append(f"{where}: {_reason(error, section, key)}")
    if problems:
        message = f"`{FILE_NAME}` " + (problems[0] if len(problems) == 1 else f"has {plural(len(problems), 'problem')}")
        raise SettingsError(
            message, hint=f"correct `{path}`", path=path, **({"problems": problems} if len(problems) > 1 else {})
        )
    return values


def editors_from_file(path: Path) -> dict[str, dict[str, object]]:
    """Read what `reviver.toml` tells each editor under `[editors.NAME]`, as it stands there.

    Raises:
        SettingsError: the file cannot be read.
    """
    tables = _read(path)[1].get(EDITORS, {})
    given = tables if isinstance(tables, dict) else {}
    return {name: dict(table) for name, table in given.items() if isinstance(table, dict)}


def _read(path: Path) -> tuple[str, dict[str, object]]:
    """Return the text of a file and its tables; nothing for a file that is not there."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return "", {}
    except OSError as error:
        raise SettingsError(f"cannot read `{path}`: {error.strerror}", hint="make it a readable file") from error
    try:
        if len(raw) > _LARGEST_FILE:
            raise ValueError("the file is larger than a megabyte")
        text = raw.decode("utf-8-sig")
        return text, tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        problem = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else printable(str(error), 200)
        raise SettingsError(f"`{FILE_NAME}` cannot be read: {problem}", hint=f"correct `{path}`", path=path) from error


def _unknown_section(text: str, section: str) -> str:
    near = get_close_matches(section, SECTIONS, n=1)
    meant = f"did you mean [{near[0]}]?" if near else "there are " + ", ".join(f"[{name}]" for name in SECTIONS)
    line = _line_of(text, section, None)
    if section in SECTIONS:
        return f"line {line}: `{section}` must be a section [{section}]"
    owners = [name for name, kind in SECTIONS.items() if section in {key.name for key in fields(kind)}]
    if owners:
        return f"line {line}: `{section}` belongs under [{owners[0]}]"
    return f"line {line}: there is no section [{printable(section, 40)}]; {meant}"


def _reason(error: KeyError | ValueError, section: str, key: str) -> str:
    if isinstance(error, ValueError):
        return str(error)
    names = [found.name for found in fields(SECTIONS[section])]
    near = get_close_matches(key, names, n=1)
    meant = f"did you mean `{near[0]}`?" if near else "there are " + ", ".join(f"`{name}`" for name in names)
    return f"there is no setting `{printable(key, 40)}` in [{section}]; {meant}"


def _line_of(text: str, section: str, key: str | None) -> int:
    """Return the number of the line, from 1, where a key is set, or of its section if it is written in another way."""
    current, found = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        words = re.findall(r"[\w-]+", line.partition("=")[0])
        if not words or line.lstrip().startswith("#"):
            continue
        if line.lstrip().startswith("["):
            current, words = words[0], words[:1]
        elif current:
            words = [current, *words]
        if words[0] == section and (key is None or words[1:2] == [key]):
            return number
        if words[0] == section:
            found = found or number
    return found or 1


def from_environment(environment: Mapping[str, str]) -> Values:
    """Read the variables `REVIVER_<SECTION>_<KEY>`; an empty one sets nothing.

    Raises:
        SettingsError: a value will not do, or a variable is almost one of ours.
    """
    names = {variable_name(f"{section}.{key.name}"): f"{section}.{key.name}" for section, key in all_fields()}
    values: Values = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(VARIABLE_PREFIX) or not text:
            continue
        if variable not in names:
            # Other programs may own variables with this beginning; one that is almost a setting is a slip.
            if variable.startswith(f"{VARIABLE_PREFIX}{EDITORS.upper()}_"):
                raise SettingsError(
                    f"there is no setting `{variable}`",
                    hint=f"what an editor is told stands in `{FILE_NAME}` under [{EDITORS}.NAME]",
                )
            near = get_close_matches(variable, names, n=1, cutoff=0.85)
            if near or variable.removeprefix(VARIABLE_PREFIX).partition("_")[0].lower() in SECTIONS:
                meant = f"did you mean `{near[0]}`?" if near else f"see `{FILE_NAME}` for the settings there are"
                raise SettingsError(f"there is no setting `{variable}`", hint=meant)
            continue
        try:
            values[names[variable]] = (
                checked(names[variable], parsed(names[variable], text), f"`{variable}`"),
                f"`{variable}`",
            )
        except ValueError as error:
            raise SettingsError(str(error), hint=f"set `{variable}` to another value, or unset it") from error
    return values


def from_command_line(given: Mapping[str, object]) -> Values:
    """Check the values that options gave, by `section.key`; None was not given.

    Raises:
        SettingsError: a value will not do.
    """
    values: Values = {}
    for name, value in given.items():
        if value is None:
            continue
        option = "--" + find_field(name)[1].name.replace("_", "-")
        try:
            values[name] = (checked(name, value, f"`{option}`"), f"`{option}`")
        except ValueError as error:
            raise SettingsError(str(error), hint=f"give `{option}` another value") from error
    return values
