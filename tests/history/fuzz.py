"""Every reader fuzzed at length, guided by coverage: `python tests/history/fuzz.py [READER ...]`.

Each reader has a process of its own, with every branch of the package counted, and ends after `--seconds` of processor time
(ten minutes by default) or at the first input that it neither reads nor refuses, takes too long for or needs too much memory
for; that input is kept beside `--out`, for a test. Inputs grow from a sound sample, half of them as bytes, half as records with
odd values. What was found is kept in the file as each reader ends. Needs atheris (`pip install atheris`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["reviver"]):
    from mutations import changed_record
    from readers import NAMES, Reader, make_readers

SECONDS = 600.0
# Most readers read files: on a disk that journals every one of them, a fuzzer waits more than it reads.
IN_MEMORY = Path("/dev/shm")
SLOWEST_SECONDS = 20
MEMORY_MIB = 1024
MOST_BYTES = 1 << 16


def fuzz(name: str, seconds: float, folder: Path) -> None:
    """Feed one reader until the time is up, print what it took, and leave the process."""
    reader: Reader = make_readers(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "sample").write_bytes(reader.sample)
    took: dict[str, Any] = {"inputs": 0, "slowest_s": 0.0}
    end = time.process_time() + seconds

    def feed(data: bytes) -> None:
        before = time.process_time()
        reader.read_or_refuse(data)
        now = time.process_time()
        took["inputs"] += 1
        took["slowest_s"] = round(max(took["slowest_s"], now - before), 3)
        if now > end:
            took["memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(json.dumps(took), flush=True)
            os._exit(0)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return atheris.Mutate(data, most)
        return changed_record(data, chance, lines=reader.lines)[:most]

    limits = [f"-timeout={SLOWEST_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={MOST_BYTES}"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *limits, "-verbosity=0", f"-artifact_prefix={folder}/found-"],
        feed,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def run(name: str, seconds: float, out: Path) -> dict[str, Any]:
    """Fuzz one reader in a process of its own and return what came of it."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        done = subprocess.run(
            [sys.executable, __file__, name, "--seconds", str(seconds), "--inside", folder],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return {"outcome": "held", "cpu_s": seconds, **json.loads(done.stdout.splitlines()[-1])}
        found = sorted(Path(folder).glob("found-*"))
        for path in found:
            (out.parent / f"{name}-{path.name}").write_bytes(path.read_bytes())
        sys.stderr.write(done.stderr[-4000:])
        return {"outcome": "failed", "cpu_s": seconds, "inputs_kept": [path.name for path in found]}


def main() -> int:
    """Fuzz the readers asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of processor time for each")
    parser.add_argument("--out", type=Path, help="keep what came of it here; other readers in the file stay")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.readers or NAMES
    unknown = set(names) - set(NAMES)
    if unknown:
        parser.error(f"there is no reader {', '.join(sorted(unknown))}")
    if arguments.inside:
        fuzz(names[0], arguments.seconds, arguments.inside)
    out = arguments.out or Path("fuzz.json")
    failed = False
    for name in names:
        result = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), **run(name, arguments.seconds, out)}
        failed |= result["outcome"] != "held"
        print(f"{name:12} {result}", flush=True)
        # Read again each time: several of these may run side by side.
        record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"readers": {}}
        record |= {
            "command": "python tests/history/fuzz.py",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
            "limits": {"seconds_an_input": SLOWEST_SECONDS, "memory_mib": MEMORY_MIB},
        }
        record["readers"][name] = result
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
