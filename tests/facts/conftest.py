from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reviver.errors import FactsError
from reviver.facts.checks import Problem
from reviver.facts.reader import read_facts

WriteFile = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """Write bytes, text, or records as JSON Lines, to a file of the test's own."""

    def write_file(content: bytes | str | list[dict[str, object]], name: str = "facts.jsonl") -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.fixture
def problems_of() -> Callable[..., list[Problem]]:
    """Read a file that must be refused, and return its problems."""

    def read(path: Path, **options: object) -> list[Problem]:
        with pytest.raises(FactsError) as caught:
            read_facts(path, **options)
        error = caught.value
        assert error.hint and "\n" not in error.hint
        assert error.message and not error.message.endswith(".")
        return list(error.facts["problems"])

    return read


@pytest.fixture
def record() -> Callable[..., dict[str, object]]:
    """Make a record of the own form; a field given as None is left out."""

    def make(**fields: object) -> dict[str, object]:
        made = {"prompt": "The capital of {} is", "subject": "Asel", "target_new": "Hask"} | fields
        return {name: value for name, value in made.items() if value is not None}

    return make
