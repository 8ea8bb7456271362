"""What all tests share: one thread a process, and the record of the long ones.

Two workers run side by side, and small matrices gain nothing from more threads. With `KEEP_RESULTS=1 pytest -m long` what
became of every long test, and what it told with `record_property`, is kept with machine and date beside the results of the
benchmarks; tests that were not run stay as they are there.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG_RESULTS = Path(__file__).parent / "benchmarks" / "results" / "long.json"

_found: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "long" in report.keywords and (report.when == "call" or not report.passed):
        _found[report.nodeid] = {
            "outcome": report.outcome,
            "seconds": round(report.duration, 1),
            "date": datetime.now(UTC).date().isoformat(),
            **dict(report.user_properties),
        }


def pytest_sessionfinish() -> None:
    if not _found or not os.environ.get("KEEP_RESULTS") or "PYTEST_XDIST_WORKER" in os.environ:
        return
    record = json.loads(LONG_RESULTS.read_text(encoding="utf-8")) if LONG_RESULTS.exists() else {"tests": {}}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}"
    record |= {"command": "KEEP_RESULTS=1 pytest -m long", "machine": machine}
    record["tests"] = dict(sorted({**record["tests"], **_found}.items()))
    LONG_RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
