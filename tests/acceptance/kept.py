"""What a long run found, kept with machine and date beside the other results where the variable `KEEP_RESULTS` is set."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "kill.json"
COMMAND = "KEEP_RESULTS=1 pytest -m long -n 0 tests/acceptance/test_kill.py tests/acceptance/test_disk_faults.py"

_kept: dict[str, Any] = {}


def keep(part: str, command: str, found: Mapping[str, object]) -> None:
    """Keep what became of one command, once all that must hold was seen to hold; the first of a run replaces the older file."""
    if not os.environ.get("KEEP_RESULTS"):
        return
    assert "PYTEST_XDIST_WORKER" not in os.environ, f"one process keeps the results: {COMMAND}"
    now = datetime.now(UTC)
    if not _kept:
        _kept.update(
            schema=1,
            command=COMMAND,
            date=now.date().isoformat(),
            machine=f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}, torch {torch.__version__}",
            outcome="nothing lost; the next command works; what it makes is byte-identical with an uninterrupted run",
        )
    _kept.setdefault(part, {})[command] = dict(found)
    FILE.write_text(json.dumps(_kept, indent=2) + "\n", encoding="utf-8")
