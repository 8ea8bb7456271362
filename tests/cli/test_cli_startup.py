"""Starting is fast: measured against a bare Typer program in the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "startup.py"


def test_help_starts_like_a_bare_program() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--rounds", "5", "--json"], capture_output=True, text=True, check=True
    )
    programs = json.loads(done.stdout)["programs"]
    assert programs["reviver --help"]["ratio"] <= 1.5
