"""The set of commands, arguments and options as data; `python tests/cli/freeze.py` writes the frozen set anew.

Scripts rely on this set. A change of `options.json` is a change of the contract and is looked at as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reviver.cli import app

FROZEN = Path(__file__).with_name("options.json")


def interface(name: str) -> list[dict[str, Any]]:
    """Return the arguments and options of a command: spellings, value, whether it is required or repeated."""
    return [_described(parameter) for parameter in app.load_command(name).params]


def _described(parameter: Any) -> dict[str, Any]:
    if parameter.param_type_name == "argument":
        spellings = [parameter.metavar or str(parameter.name).upper()]
    else:
        spellings = [*parameter.opts, *parameter.secondary_opts]
    described: dict[str, Any] = {"kind": parameter.param_type_name, "spellings": spellings}
    if parameter.param_type_name == "option":
        described["takes_value"] = not getattr(parameter, "is_flag", False)
    if parameter.required:
        described["required"] = True
    if parameter.nargs != 1 or getattr(parameter, "multiple", False):
        described["repeated"] = True
    if parameter.envvar:
        described["variable"] = parameter.envvar
    return described


def main() -> None:
    """Write the frozen set."""
    FROZEN.write_text(json.dumps({name: interface(name) for name in app.COMMANDS}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
