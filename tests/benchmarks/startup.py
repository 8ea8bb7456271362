"""How long commands take to start, against a bare Typer program measured in the same run.

`python tests/benchmarks/startup.py` prints a table; `--json` prints one object; `--versions 200` makes a workspace of that
many versions and measures the commands that look at it (`--workspace DIR` takes one that is there); `--check` exits with 1
if a goal is missed. All programs take turns in every round, so that whatever else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BARE = '''
import typer

app = typer.Typer()


@app.command()
def hello(name: str) -> None:
    """Say hello."""


@app.command()
def goodbye(name: str) -> None:
    """Say goodbye."""


app()
'''

HELP_GOAL = 1.5
LOOKING_GOAL = 3.0


def measure(programs: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each program took in each round; one more round before warms the disk's cache."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, command in programs.items():
            start = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
            taken = time.perf_counter() - start
            if done.returncode != 0:
                raise SystemExit(f"{name} failed: {done.stderr.decode(errors='replace')}")
            if number:
                seconds[name].append(taken)
    return seconds


def programs(bare: Path, workspace: Path | None) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Return the programs to measure, the bare one first, and each one's goal as a multiple of the bare one's time."""
    reviver = [sys.executable, "-m", "reviver"]
    chosen = {"bare --help": [sys.executable, str(bare), "--help"], "reviver --help": [*reviver, "--help"]}
    goals = {"reviver --help": HELP_GOAL}
    for verb in ("log", "status", "diff"):
        chosen[f"reviver {verb} --help"] = [*reviver, verb, "--help"]
        goals[f"reviver {verb} --help"] = HELP_GOAL
    if workspace is not None:
        for arguments in (["log"], ["status"], ["diff", "base", "head"]):
            name = f"reviver {' '.join(arguments)}"
            chosen[name] = [*reviver, *arguments, "-C", str(workspace)]
            goals[name] = LOOKING_GOAL
    return chosen, goals


def make_history(folder: Path, versions: int) -> Path:
    """Make a workspace with a chain of `versions` versions of a tiny base, without checkpoints, and return its folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "history"))
    import workspaces

    workspace = workspaces.make_workspace(folder)
    for number in range(versions):
        facts = [workspaces.make_fact(f"Place {number}", "Norway")]
        delta = {workspaces.FIRST: workspaces.low_rank(number, rank=1, scale=0.01)}
        workspaces.add_version(workspace, facts, delta, message=f"edit {number}", checkpoint=False)
    return Path(workspace.root)


def figures(folder: Path, *, versions: int, rounds: int, workspace: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return median, ratio to the bare program and goal of every program; with `versions`, over a history made in `folder`."""
    bare = folder / "bare.py"
    bare.write_text(BARE, encoding="utf-8")
    chosen, goals = programs(bare, make_history(folder, versions) if versions else workspace)
    medians = {name: statistics.median(taken) for name, taken in measure(chosen, rounds).items()}
    unit = medians["bare --help"]
    return {
        name: {"median_s": round(median, 4), "ratio": round(median / unit, 3), "goal": goals.get(name)}
        for name, median in medians.items()
    }


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--versions", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = figures(
            Path(folder), versions=arguments.versions, rounds=arguments.rounds, workspace=arguments.workspace
        )
    if arguments.json:
        report = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
            "rounds": arguments.rounds,
            "programs": rows,
        }
        print(json.dumps(report, indent=1))
    else:
        for name, row in rows.items():
            goal = "" if row["goal"] is None else f"goal {row['goal']}x"
            print(f"{name:24} {1000 * row['median_s']:7.1f} ms {row['ratio']:6.2f}x  {goal}")
    missed = any(row["goal"] is not None and row["ratio"] > row["goal"] for row in rows.values())
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
