"""How long looking at a long history takes: `log`, `status`, `blame` and `diff` over a workspace of many versions.

`python tests/benchmarks/history.py` makes a chain of 1,000 versions with 100 facts each, without a model, and prints a table;
`--json` prints one object; `--check` exits with 1 where a command takes longer than the goal; `--keep DIR` makes the workspace
there and leaves it. Every command is a process of its own, so the start of Python is in the figures, and the commands take
turns in every round. `cpu` is what the command itself used, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "history"))

import workspaces

from reviver.facts.fact import Fact, facts_to_jsonl
from reviver.files import sha256_bytes
from reviver.history.manifest import Manifest, ManifestFacts, ManifestFile, ManifestPatch
from reviver.history.patch import write_patch
from reviver.history.results import results_to_jsonl
from reviver.history.workspace import Workspace

GOAL_SECONDS = 1.0
# It tells every one of 100,000 facts, so it cannot but read them all.
WITHOUT_GOAL = "diff base head --stat"
_RELATIONS = ("The capital of {} is", "{} was founded by", "In the north of {} flows the river")
_SHARDS = 30


def make_history(folder: Path, versions: int, facts: int) -> Workspace:
    """Make a chain of versions whose manifests are as long as those of a model of 30 shards, and return the workspace.

    Ids, facts and patches are sound; the files' hashes are invented, which no command that only looks reads.
    """
    workspace = workspaces.make_workspace(folder)
    deltas = {name: workspaces.low_rank(0, rank=1) for name in workspaces.NAMES}
    model = workspaces.add_version(workspace, _facts(1, facts), deltas, checkpoint=False).manifest
    files = [
        ManifestFile(
            path=f"model-{number:05}-of-{_SHARDS:05}.safetensors",
            size=5 * 10**9,
            sha256=sha256_bytes(bytes([number])),
            changed=number % 2 == 0,
        )
        for number in range(1, _SHARDS + 1)
    ]
    parent_id = model.id
    for number in range(2, versions + 1):
        batch = _facts(number, facts)
        lines = facts_to_jsonl(batch)
        target = workspace.edits / f"v{number}"
        target.mkdir()
        deltas = {name: workspaces.low_rank(number, rank=1, scale=0.01) for name in workspaces.NAMES}
        size, sha256 = write_patch(target / "patch.safetensors", deltas)
        (target / "facts.jsonl").write_bytes(lines)
        (target / "results.jsonl").write_bytes(results_to_jsonl(map(workspaces.make_result, batch)))
        manifest = Manifest.create(
            parent_id=parent_id,
            version=f"v{number}",
            parent=f"v{number - 1}",
            message=f"Corrections of week {number}",
            base=model.base,
            editor=model.editor,
            filter=model.filter,
            facts=ManifestFacts(count=len(batch), sha256=sha256_bytes(lines)),
            patch=ManifestPatch(size=size, sha256=sha256),
            tensors=model.tensors,
            files=files,
            metrics=dict(model.metrics),
            rounds=[{"facts": [fact.id for fact in batch], "prefixes": ["The", "In", "A"], "seed": 0}],
            environment=dict(model.environment),
            timings=dict(model.timings),
        )
        (target / "manifest.json").write_bytes(manifest.to_json())
        parent_id = manifest.id
    workspace.head_file.write_text(f"v{versions}\n", encoding="utf-8")
    return workspace


def _facts(version: int, count: int) -> list[Fact]:
    """Return a version's facts; the first is about a subject that every hundredth version changes again."""
    return [
        _fact(f"Place {version % 100}" if index == 0 else f"Place {version}-{index}", version, index)
        for index in range(count)
    ]


def _fact(subject: str, version: int, index: int) -> Fact:
    return Fact(
        id=sha256_bytes(f"{version}/{index}".encode())[:12],
        prompt=_RELATIONS[index % len(_RELATIONS)],
        subject=subject,
        target_new=f"Town {version}",
        target_true="Nowhere",
        paraphrase_prompts=(f"People who visit {subject} first see its capital,",),
    )


def commands(workspace: Workspace) -> dict[str, list[str]]:
    """Return what is measured, by name."""
    reviver = [sys.executable, "-m", "reviver"]
    looks = {
        "log": ["log"],
        "log -n 20": ["log", "-n", "20"],
        "log --graph": ["log", "--graph"],
        "status": ["status"],
        "blame SUBJECT": ["blame", "Place 7"],
        "blame PROMPT": ["blame", "The capital of Place 7 is"],
        "blame part of a prompt": ["blame", "place 321-"],
        "diff head~1 head": ["diff", "head~1", "head"],
        WITHOUT_GOAL: ["diff", "base", "head", "--stat"],
    }
    return {name: [*reviver, *arguments, "-C", str(workspace.root)] for name, arguments in looks.items()}


def measure(command: list[str]) -> tuple[float, float]:
    """Return wall time and processor time of one run, in seconds."""
    before = os.times()
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    wall = time.perf_counter() - start
    after = os.times()
    if done.returncode != 0:
        raise SystemExit(f"{command} failed: {done.stderr.decode(errors='replace')}")
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = make_history(arguments.keep or Path(temporary), arguments.versions, arguments.facts)
        history_bytes = sum(path.stat().st_size for path in workspace.edits.rglob("*") if path.is_file())
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands(workspace)}
        for number in range(arguments.rounds + 1):
            for name, command in commands(workspace).items():
                once = measure(command)
                if number:  # The first round warms the disk's cache.
                    taken[name].append(once)
    rows = {
        name: {
            "wall_s": round(statistics.median(wall for wall, _ in once), 3),
            "cpu_s": round(statistics.median(cpu for _, cpu in once), 3),
            "goal_s": None if name == WITHOUT_GOAL else GOAL_SECONDS,
        }
        for name, once in taken.items()
    }
    if arguments.json:
        report = {
            "command": "python tests/benchmarks/history.py",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, python {platform.python_version()}",
            "versions": arguments.versions,
            "facts": arguments.versions * arguments.facts,
            "history_bytes": history_bytes,
            "rounds": arguments.rounds,
            "commands": rows,
        }
        print(json.dumps(report, indent=1))
    else:
        for name, row in rows.items():
            goal = "" if row["goal_s"] is None else f"  goal {row['goal_s']:g} s"
            print(f"{name:24} {row['wall_s']:7.3f} s wall {row['cpu_s']:7.3f} s cpu{goal}")
    missed = any(row["goal_s"] is not None and (row["cpu_s"] or 0) > row["goal_s"] for row in rows.values())
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
