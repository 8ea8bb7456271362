"""Two processes of one thread each against one, over the edit phase of one `apply`; a part of `speed.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from patient import FACTS, MODEL
from safetensors.torch import load_file


def two_against_one(count: int) -> dict[str, object]:
    """Return the seconds of the edit phase of one `apply`, alone and shared by two processes, and how far the patches differ."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    with tempfile.TemporaryDirectory(prefix="reviver-benchmark-") as name:
        folder = Path(name)
        facts = folder / "facts.jsonl"
        facts.write_text("".join(FACTS.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
        one = [sys.executable, "-m", "reviver"]
        two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "reviver"]
        seconds, patches = {}, {}
        for label, start in (("one", one), ("two", two)):
            work = folder / label
            run(*one, "init", str(MODEL), str(work), "-q", "--device", "cpu")
            options = ["-C", str(work), "--device", "cpu", "--no-checkpoint", "--json"]
            report = json.loads(run(*start, "apply", str(facts), *options))
            seconds[label] = report["seconds"]["edit"]
            patches[label] = load_file(work / "edits" / "v1" / "patch.safetensors")
    errors = [float((patches["two"][name] - tensor).norm() / tensor.norm()) for name, tensor in patches["one"].items()]
    return {
        "what": f"edit phase of {count} facts",
        "one_s": seconds["one"],
        "two_s": seconds["two"],
        "times_faster": seconds["one"] / seconds["two"],
        "patch_error": max(errors),
    }
