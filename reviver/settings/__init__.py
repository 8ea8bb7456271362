"""Every setting of a run, and where its value comes from.

Precedence: the command line, then `REVIVER_<SECTION>_<KEY>`, then `reviver.toml`, then the model's preset, then the
default.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reviver.errors import SettingsError
from reviver.settings.check import parse_layers
from reviver.settings.sections import (
    ApplySection,
    ModelSection,
    MomentsSection,
    TargetsSection,
    all_fields,
    describe,
    find_field,
    variable_name,
)
from reviver.settings.sources import (
    FILE_NAME,
    Values,
    editors_from_file,
    from_command_line,
    from_environment,
    from_file,
)

__all__ = [
    "FILE_NAME",
    "ApplySection",
    "ModelSection",
    "MomentsSection",
    "Settings",
    "TargetsSection",
    "describe",
    "parse_layers",
    "variable_name",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one run.

    Attributes:
        editors: what the file tells each editor, unchecked: an editor knows its own settings.
        sources: for each setting that was set, by `section.key`, where its value comes from.
    """

    apply: ApplySection = field(default_factory=ApplySection)
    targets: TargetsSection = field(default_factory=TargetsSection)
    moments: MomentsSection = field(default_factory=MomentsSection)
    model: ModelSection = field(default_factory=ModelSection)
    editors: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def load(
        cls, workspace: Path, given: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
    ) -> Settings:
        """Read the settings of a workspace.

        Args:
            workspace: the folder that may hold a `reviver.toml`.
            given: the command line's own values by `section.key`; None means not given.
            environment: the process's own unless another is given.

        Raises:
            SettingsError: a setting is unknown, of the wrong type, out of range, or two exclude each other.
        """
        layers = [
            from_file(workspace / FILE_NAME),
            from_environment(os.environ if environment is None else environment),
            from_command_line(given or {}),
        ]
        settings = cls(editors=MappingProxyType(editors_from_file(workspace / FILE_NAME)))
        for layer in layers:
            settings = settings._with(layer)
        if (settings.model.blocks is None) != (settings.model.matrix is None):
            raise SettingsError(
                "`blocks` and `matrix` under [model] belong together, and one is missing",
                hint=f"name both in `{FILE_NAME}`, or neither for an architecture that reviver knows",
            )
        return settings

    def source(self, name: str) -> str:
        """Return where the value of `section.key` comes from, such as `` `--rank` `` or `default`."""
        find_field(name)
        return self.sources.get(name, "default")

    def filled(self, preset: Mapping[str, object], source: str = "preset") -> Settings:
        """Return the settings with every value that is still None taken from a preset, by `section.key`."""
        missing = {name: value for name, value in preset.items() if self.value(name) is None}
        return self._with({name: (value, source) for name, value in missing.items()})

    def value(self, name: str) -> Any:
        """Return the value of `section.key`."""
        section, key = find_field(name)
        return getattr(getattr(self, section), key.name)

    def items(self) -> Iterator[tuple[str, object, str]]:
        """Yield `section.key`, value and source of every setting, in the file's order."""
        for section, key in all_fields():
            name = f"{section}.{key.name}"
            yield name, self.value(name), self.source(name)

    def _with(self, values: Values) -> Settings:
        """Return the settings with checked values on top, each with its source."""
        if {"apply.rank", "apply.energy"} <= values.keys():
            rank, energy = values["apply.rank"][1], values["apply.energy"][1]
            raise SettingsError(f"{rank} and {energy} exclude each other", hint="give the protected rank or the energy")
        for name in ("apply.rank", "apply.energy"):
            if values.get("apply.filter", ("", ""))[0] == "none" and values.get(name, ("", ""))[1].startswith("`--"):
                raise SettingsError(
                    f"without a filter nothing is protected, and {values[name][1]} has no meaning",
                    hint="leave it out, or choose `--filter revive`",
                )
        sections: dict[str, dict[str, object]] = {}
        sources = dict(self.sources)
        for name, (value, source) in values.items():
            section, key = find_field(name)
            sections.setdefault(section, {})[key.name] = value
            sources[name] = source
        for name, other in (("apply.rank", "energy"), ("apply.energy", "rank")):
            if name in values:
                # A rank on the command line replaces an energy in the file, and the other way round.
                sections["apply"][other] = None
                sources.pop(f"apply.{other}", None)
        changed: dict[str, Any] = {
            section: replace(getattr(self, section), **given) for section, given in sections.items()
        }
        return replace(self, sources=MappingProxyType(sources), **changed)

    @staticmethod
    def default_toml() -> str:
        """Return the `reviver.toml` that a new workspace gets: every setting explained and commented out, in order."""
        lines = [
            "# Settings of this workspace. A line that begins with # is a default or an example; remove the # to set it.",
            "# The command line and REVIVER_<SECTION>_<KEY> go before this file; this file goes before the model's preset.",
        ]
        shown = ""
        for section, key in all_fields():
            if section != shown:
                lines += ["", f"[{section}]"]
                shown = section
            lines += ["", *textwrap.wrap(key.metadata["description"], 110, initial_indent="# ", subsequent_indent="# ")]
            lines.append(f"# {key.name} = {_toml(key.metadata['example'])}")
        lines += [
            "",
            '# An editor\'s own settings stand in a section of its own, such as `memory = "keys"` under [editors.memit].',
        ]
        return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)
