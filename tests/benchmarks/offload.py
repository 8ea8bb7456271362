"""How much memory `apply` takes with all blocks on disk but the edited ones, against all of them in memory.

    python tests/benchmarks/offload.py --json offload.json

The model is random, in bfloat16 on disk and in float32 in memory; most of its blocks lie above the edited ones, where gradients
flow. Each way runs in a process of its own, whose resident memory is read every few milliseconds. The third way leaves out that
blocks run again in the backward pass, so that autograd keeps what they computed with. All ways have to give the same patch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from patient import machine
from transformers import AutoModelForCausalLM, LlamaConfig

from reviver.text import human_bytes

sys.path.append(str(Path(__file__).parents[1] / "acceptance"))
from tiny_models import VOCABULARY, make_tokenizer, write_facts

WAYS = {"whole": "auto", "offloaded": "always", "kept by autograd": "always"}
SETTINGS = """
[apply]
device = "cpu"
rank = 8
maximum_relative_norm = 1000.0

[targets]
steps = 3
prefixes = 1
prefix_length = 3

[moments]
tokens = 256
length = 64
weight = 4.0
"""


def make_base(folder: Path, arguments: argparse.Namespace) -> None:
    """Save a random Llama in bfloat16, in shards of ten blocks or so."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=arguments.hidden, intermediate_size=arguments.inner,
        num_hidden_layers=arguments.blocks, num_attention_heads=arguments.hidden // 64, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder, max_shard_size="200MB")
    make_tokenizer(folder)


class Watch:
    """The most resident memory of this process, in all and without what is only mapped from files, in bytes."""

    def __init__(self) -> None:
        self.most = {"VmRSS": 0, "RssAnon": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._ended.wait(0.005):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in self.most:
                    self.most[name] = max(self.most[name], 1024 * int(rest.split()[0]))


def run_alone(arguments: argparse.Namespace) -> None:
    """Run one `apply` in this process and print what it took."""
    from reviver.cli import app
    from reviver.editing import upper

    if arguments.alone == "kept by autograd":
        upper.recomputing = lambda model, first: nullcontext()  # type: ignore[assignment]
    with Watch() as watch:
        time.sleep(0.05)
        before = dict(watch.most)
        start = time.process_time()
        options = ("-C", str(arguments.workspace), "--offload", WAYS[arguments.alone], "--no-checkpoint", "--json")
        with redirect_stdout(StringIO()) as printed:
            code = app.run(["apply", str(arguments.workspace.parent / "facts.jsonl"), *options])
        took = time.process_time() - start
    print(
        json.dumps(
            {
                "code": code,
                "planned": 0 if code else json.loads(printed.getvalue())["plan"]["memory"]["needed"],
                "start": before["VmRSS"],
                "resident": watch.most["VmRSS"],
                "anonymous": watch.most["RssAnon"],
                "processor_seconds": took,
            }
        )
    )


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the base, prepare it once, and run every way on a copy of the workspace."""
    base = work / "base"
    make_base(base, arguments)
    write_facts(work / "facts.jsonl")
    prepared = work / "prepared"
    prepared.mkdir()
    (prepared / "reviver.toml").write_text(SETTINGS, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "reviver", "init", str(base), str(prepared), "--layers", arguments.layers]
    subprocess.run([*command, "--no-progress"], check=True, env=environment)
    found: dict[str, Any] = {}
    patches = set()
    for way in WAYS:
        workspace = work / way.replace(" ", "-")
        subprocess.run(["cp", "-r", str(prepared), str(workspace)], check=True)
        command = [sys.executable, __file__, "--alone", way, "--workspace", str(workspace)]
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        if found[way].pop("code"):
            raise SystemExit(done.stderr)
        patches.add((workspace / "edits" / "v1" / "patch.safetensors").read_bytes())
        print(way, {name: human_bytes(value) for name, value in found[way].items() if value > 1e6}, flush=True)
    values = sum(one.stat().st_size for one in base.glob("*.safetensors")) // 2
    return {
        **machine(),
        "model_bytes": 4 * values,
        "block_bytes": 4 * (4 * arguments.hidden**2 + 3 * arguments.hidden * arguments.inner),
        "blocks": arguments.blocks,
        "layers": arguments.layers,
        "ways": found,
        "same_patch": len(patches) == 1,
    }


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=36)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2048)
    parser.add_argument("--layers", default="4-6", help="the edited blocks")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--workspace", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        run_alone(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="reviver-benchmark-", dir=arguments.folder) as work:
        figures = measure(Path(work), arguments)
    print(f"model in memory {human_bytes(figures['model_bytes'])}, a block {human_bytes(figures['block_bytes'])}")
    print(f"same patch      {figures['same_patch']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
