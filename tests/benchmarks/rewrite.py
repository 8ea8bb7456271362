"""How fast a changed shard is rewritten, against `cp` and `sha256sum` of the same bytes in the same run, and in how much memory.

    python tests/benchmarks/rewrite.py --layers 4 --rank 100 --json rewrite.json

The shard is shaped like a part of an 8B Llama: per layer one edited `down_proj` and as many other bytes as a layer has beside it.
`cp` does not wait for the disk and reviver does, so the plain way is timed both without and with `sync` of the copy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from reviver.checkpoint.delta import LowRankDelta
from reviver.checkpoint.floats import encode
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.pin import BasePin, pin_folder
from reviver.checkpoint.rewrite import write_checkpoint
from reviver.checkpoint.rounding import rounded_sum
from reviver.text import human_bytes

NAME = "model.layers.{}.mlp.down_proj.weight"


def make_base(folder: Path, arguments: argparse.Namespace) -> int:
    """Write a checkpoint of one shard, a tensor at a time, and return the size of the largest tensor."""
    width = 4 if arguments.dtype == "F32" else 2
    edited: int = arguments.height * arguments.width * width
    # A layer of Llama 8B has 436 MB, of which down_proj is 117 MB.
    beside = int(edited * 2.7) // width * width
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for layer in range(arguments.layers):
        shape = [arguments.height, arguments.width]
        table[NAME.format(layer)] = {
            "dtype": arguments.dtype, "shape": shape, "data_offsets": [position, position + edited]
        }  # fmt: skip
        position += edited
        rest = {"dtype": arguments.dtype, "shape": [beside // width], "data_offsets": [position, position + beside]}
        table[f"model.layers.{layer}.rest"] = rest
        position += beside
    header = json.dumps(table).encode()
    random = np.random.default_rng(0)
    rows = max(1, 4_000_000 // arguments.width)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(arguments.layers):
            for first in range(0, arguments.height, rows):
                count = min(rows, arguments.height - first) * arguments.width
                file.write(encode(0.02 * random.standard_normal(count), arguments.dtype))
            left = beside
            while left:
                file.write(random.bytes(min(left, 1 << 24)))
                left -= min(left, 1 << 24)
        os.fsync(file.fileno())
    (folder / "config.json").write_text("{}")
    return max(edited, beside)


def make_chain(arguments: argparse.Namespace) -> dict[str, list[LowRankDelta]]:
    """Return a delta of relative norm 3e-3 for every edited tensor."""
    random = np.random.default_rng(1)
    scale = np.float32((3e-3 * 0.02 / arguments.rank**0.5) ** 0.5)
    return {
        NAME.format(layer): [
            LowRankDelta(
                scale * random.standard_normal((arguments.height, arguments.rank), np.float32),
                scale * random.standard_normal((arguments.rank, arguments.width), np.float32),
            )
        ]
        for layer in range(arguments.layers)
    }


def rewrite_alone(arguments: argparse.Namespace) -> None:
    """Rewrite in this process, and print seconds and memory: run in a process of its own."""
    folder = CheckpointFolder.open(arguments.base)
    pin = BasePin.from_json((arguments.base.parent / "pin.json").read_bytes())
    chain = make_chain(arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    written = write_checkpoint(folder, pin, chain, arguments.alone)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    digest = next(record.sha256 for record in written.files if record.path == "model.safetensors")
    print(json.dumps({"seconds": seconds, "rss_before": before, "rss_peak": after, "sha256": digest}))


def save_alone(arguments: argparse.Namespace) -> None:
    """Load the shard, add the updates in float32 and save it with safetensors, as public code does; in a process of its own."""
    import torch
    from safetensors.torch import load_file, save_file

    chain = make_chain(arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    tensors = load_file(arguments.base / "model.safetensors")
    for name, (delta,) in chain.items():
        left, right = torch.from_numpy(delta.left), torch.from_numpy(delta.right)
        tensors[name] = (tensors[name].float() + left @ right).to(tensors[name].dtype)
    save_file(tensors, arguments.save, {"format": "pt"})
    digest = hashlib.sha256()
    with arguments.save.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "rss_before": before, "rss_peak": after}))


def differing(one: Path, other: Path, arguments: argparse.Namespace) -> float:
    """Return the share of the edited tensors' entries in which two checkpoints differ: float32 sums round twice."""
    from safetensors import safe_open

    shares = []
    with safe_open(one, "pt") as first, safe_open(other, "pt") as second:
        for layer in range(arguments.layers):
            name = NAME.format(layer)
            shares.append(float((first.get_tensor(name) != second.get_tensor(name)).double().mean()))
    return max(shares)


def plain_way(source: Path, target: Path) -> tuple[float, float]:
    """Return the seconds of `cp` and `sha256sum`, and those of a `sync` of the copy."""
    start = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    subprocess.run(["sha256sum", str(target)], check=True, stdout=subprocess.DEVNULL)
    middle = time.perf_counter()
    subprocess.run(["sync", str(target)], check=True)
    return middle - start, time.perf_counter() - middle


def rounding_rate(arguments: argparse.Namespace) -> dict[str, float]:
    """Time the exactly rounded sum of a 1024 × 4096 tensor of rank 100 against the float64 product that it needs."""
    random = np.random.default_rng(2)
    raw = encode(0.02 * random.standard_normal(1024 * 4096), arguments.dtype)
    left = 1e-2 * random.standard_normal((1024, 100), np.float32)
    right = 1e-2 * random.standard_normal((100, 4096), np.float32)
    left_64, right_64 = left.astype(np.float64), right.astype(np.float64)
    product, rounded = [], []
    for _ in range(7):
        start = time.perf_counter()
        left_64 @ right_64
        product.append(time.perf_counter() - start)
        start = time.perf_counter()
        rounded_sum(raw, arguments.dtype, [LowRankDelta(left, right)])
        rounded.append(time.perf_counter() - start)
    return {
        "product_seconds": min(product),
        "rounded_seconds": min(rounded),
        "ratio": min(rounded) / min(product),
        "entries_per_second": 1024 * 4096 / min(rounded),
    }


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="edited layers in the shard")
    parser.add_argument("--height", type=int, default=4096)
    parser.add_argument("--width", type=int, default=14336)
    parser.add_argument("--rank", type=int, default=100)
    parser.add_argument("--dtype", choices=("BF16", "F16", "F32"), default="BF16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main() -> None:
    """Run the benchmark and print its figures."""
    arguments = parse()
    if arguments.alone or arguments.save:
        (rewrite_alone if arguments.alone else save_alone)(arguments)
        return
    work = Path(tempfile.mkdtemp(prefix="reviver-benchmark-", dir=arguments.folder))
    try:
        figures = measure(work, arguments)
    finally:
        shutil.rmtree(work)
    print(f"shard                      {human_bytes(figures['shard_bytes'])}, edited {figures['edited_share']:.0%}")
    print(f"cp + sha256sum             {figures['plain_seconds']:.2f} s")
    print(f"  … and sync               {figures['plain_synced_seconds']:.2f} s")
    print(
        f"load, add, save_file       {figures['save_seconds']:.2f} s, {human_bytes(figures['save_rss_peak'])} of memory"
    )
    print(f"reviver, synced            {figures['rewrite_seconds']:.2f} s")
    print(f"ratio                      {figures['ratio']:.2f} (synced: {figures['ratio_synced']:.2f}); goal: 1.3")
    print(
        f"memory above the start     {human_bytes(figures['rss_rise'])}; largest tensor {human_bytes(figures['largest_tensor'])}"
    )
    print(f"memory in all              {human_bytes(figures['rss_peak'])}; goal: the largest tensor + 300 MB")
    rate = figures["rounding"]
    print(
        f"rounded sum                {rate['entries_per_second'] / 1e6:.0f} M entries/s, {rate['ratio']:.1f} × its float64 product"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def in_a_process(option: str, target: Path, base: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one way in a process of its own and return what it printed."""
    command = [sys.executable, __file__, option, str(target), "--base", str(base)]
    for name in ("layers", "height", "width", "rank", "dtype"):
        command += [f"--{name}", str(getattr(arguments, name))]
    printed: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return printed


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything, the two ways in turns, and return the medians."""
    base = work / "base"
    base.mkdir()
    largest = make_base(base, arguments)
    folder = CheckpointFolder.open(base)
    pin = pin_folder(folder, source="folder", model=str(base))
    (work / "pin.json").write_bytes(pin.to_json())
    shard = base / "model.safetensors"
    plain, synced, ours, peak, rise, saved = [], [], [], [], [], []
    for number in range(arguments.repeats):
        copy_seconds, sync_seconds = plain_way(shard, work / "copy")
        plain.append(copy_seconds)
        synced.append(copy_seconds + sync_seconds)
        (work / "copy").unlink()
        result = in_a_process("--alone", work / "out", base, arguments)
        ours.append(result["seconds"])
        peak.append(result["rss_peak"])
        rise.append(result["rss_peak"] - result["rss_before"])
        if number == 0:
            digest = hashlib.sha256()
            with (work / "out" / "model.safetensors").open("rb") as file:
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
            if digest.hexdigest() != result["sha256"]:
                raise SystemExit("the hash of the written file is not the one that was reported")
            saved.append(in_a_process("--save", work / "saved.safetensors", base, arguments))
            differ = differing(work / "out" / "model.safetensors", work / "saved.safetensors", arguments)
            (work / "saved.safetensors").unlink()
        shutil.rmtree(work / "out")
    rewrite_seconds = statistics.median(ours)
    return {
        "shard_bytes": shard.stat().st_size,
        "edited_share": sum(pin.tensors[NAME.format(layer)].nbytes for layer in range(arguments.layers))
        / shard.stat().st_size,
        "largest_tensor": largest,
        "plain_seconds": statistics.median(plain),
        "plain_synced_seconds": statistics.median(synced),
        "rewrite_seconds": rewrite_seconds,
        "ratio": rewrite_seconds / statistics.median(plain),
        "ratio_synced": rewrite_seconds / statistics.median(synced),
        "save_seconds": saved[0]["seconds"],
        "times_faster_than_saving": saved[0]["seconds"] / rewrite_seconds,
        "save_rss_peak": saved[0]["rss_peak"],
        "entries_differing_from_saving": differ,
        "rss_peak": max(peak),
        "rss_rise": max(rise),
        "rounding": rounding_rate(arguments),
        "all_plain": plain,
        "all_plain_synced": synced,
        "all_rewrite": ours,
        "arguments": {key: value for key, value in vars(arguments).items() if isinstance(value, int | str)},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, numpy {np.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
