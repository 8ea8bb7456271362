"""How fast spectral bases are computed, against `torch.linalg.svd` in the same run, with the results compared.

    python tests/benchmarks/bases.py --rows 4096 --columns 14336 --width 64 --device cuda
    python tests/benchmarks/bases.py --rows 1024 --columns 3584            # reduced, on a CPU

The weight has a spectrum like a trained one's: the bulk of a random matrix and a head that falls by a power law.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from typing import Any

import torch
from common import timed
from patient import machine
from torch import Tensor

from reviver.spectral.basis import SpectralBasis, compute_basis


def weight_like_a_trained_one(rows: int, columns: int, seed: int) -> Tensor:
    """Return a float32 weight [rows, columns] with 200 leading directions above a random bulk."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.randn(rows, columns, generator=generator)
    count = min(200, rows, columns)
    left = torch.linalg.qr(torch.randn(rows, count, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, count, generator=generator)).Q
    head = (rows**0.5 + columns**0.5) * (1 + 2.0 * torch.arange(1, count + 1) ** -0.7)
    return 0.01 * (bulk + left * head @ right.T)


def compare(basis: SpectralBasis, left: Tensor, values: Tensor, right: Tensor) -> dict[str, float]:
    """Return how far a basis is from the plain SVD: values relative to σ₁, the sine of the largest angle, and the gap."""
    width, known = basis.width, len(basis.singular_values)
    lost_left = left[:, :width] - basis.left_DK @ (basis.left_DK.T @ left[:, :width])
    lost_right = right[:, :width] - basis.right_EK @ (basis.right_EK.T @ right[:, :width])
    return {
        "values": float((basis.singular_values - values[:known]).abs().max() / values[0]),
        "left_angle": float(torch.linalg.matrix_norm(lost_left, 2)),
        "right_angle": float(torch.linalg.matrix_norm(lost_right, 2)),
        "gap": float((values[width - 1] - values[width]) / values[0]),
    }


def residual(weight: Tensor, basis: SpectralBasis) -> float:
    """Return the backward error ‖W V − U Σ‖ per vector relative to σ₁, on both sides."""
    exact, values = weight.double(), basis.singular_values[: basis.width]
    sides = (exact @ basis.right_EK - basis.left_DK * values, exact.T @ basis.left_DK - basis.right_EK * values)
    return max(float(torch.linalg.vector_norm(side, dim=0).max()) for side in sides) / float(values[0])


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=3584)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch on the CPU; 0: as many as it likes")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="time of the processor instead of the wall's, for a busy machine; use one thread",
    )
    parser.add_argument("--repeat", type=int, default=1, help="the best of so many runs counts")
    parser.add_argument(
        "--no-svd", action="store_true", help="leave out the plain SVD, which takes minutes at full size"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    weight = weight_like_a_trained_one(arguments.rows, arguments.columns, arguments.seed).to(device)
    compute_basis(weight[:256, :300], 8)  # Libraries and kernels are loaded before anything is timed.
    rows: dict[str, dict[str, float]] = {}
    bases: dict[str, SpectralBasis] = {}
    for name, spectrum in (("leading vectors", False), ("all values", True)):
        seconds = []
        for _ in range(arguments.repeat):
            took, basis = timed(partial(compute_basis, weight, arguments.width, spectrum=spectrum), device, clock=clock)
            seconds.append(took)
            assert isinstance(basis, SpectralBasis)
            bases[name] = basis
        rows[name] = {"seconds": min(seconds), "backward_error": residual(weight, bases[name])}
    if not arguments.no_svd:
        exact = weight.double()
        for name, matrix in (("torch.linalg.svd float64", exact), ("torch.linalg.svd float32", weight)):
            took, result = timed(partial(torch.linalg.svd, matrix, full_matrices=False), device, clock=clock)
            rows[name] = {"seconds": took}
            if matrix is exact:
                left, values, right = result
                for ours, basis in bases.items():
                    rows[ours].update(compare(basis, left, values, right.T))
                del left, right, result
        for ours in bases:
            rows[ours]["times_faster_than_svd_float64"] = (
                rows["torch.linalg.svd float64"]["seconds"] / rows[ours]["seconds"]
            )
            rows[ours]["times_faster_than_svd_float32"] = (
                rows["torch.linalg.svd float32"]["seconds"] / rows[ours]["seconds"]
            )
    return {
        **machine(),
        "schema": 1,
        "benchmark": "bases",
        "shape": [arguments.rows, arguments.columns],
        "width": arguments.width,
        "device": device,
        "clock": "processor" if arguments.cpu_time else "wall",
        "results": rows,
    }


if __name__ == "__main__":
    print(json.dumps(measure(parse()), indent=2))
