"""How fast a round is solved at one layer, against the I × I inverse in the same run, with the results compared.

    python tests/benchmarks/solve.py --outputs 4096 --inputs 14336 --facts 100 --device cuda
    python tests/benchmarks/solve.py --outputs 1024 --inputs 3584             # reduced, on a CPU

The plain formulation is R Kᵀ (λC + K Kᵀ)⁻¹ by `torch.linalg.solve` on the I × I matrix, in float64, anew in every round,
as public code does it. Ours factors λC once a base; what that costs is a row of its own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import timed as clocked
from patient import machine
from torch import Tensor

from reviver.editing.editors import FactoredUpdate, LayerProblem, ProtectedSpace, SecondMoment, get_editor
from reviver.editing.factors import packed, unpacked
from reviver.editing.store import MatrixStore
from reviver.spectral.basis import SpectralBasis
from reviver.spectral.decomposition import orthonormalise
from reviver.spectral.filter import filter_factors


def moment_of_condition(size: int, condition: float, device: str, seed: int) -> Tensor:
    """Return a float64 second moment [I, I] with eigenvalues spread evenly in logarithm.

    Two Householder reflections of a diagonal matrix: a full matrix of exactly known condition, without an I³ product.
    """
    values = torch.logspace(0, -float(torch.log10(torch.tensor(condition))), size, dtype=torch.float64, device=device)
    matrix = torch.diag(values)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        mirror = torch.randn(size, 1, generator=generator, dtype=torch.float64).to(device)
        mirror = mirror / torch.linalg.vector_norm(mirror)
        matrix = matrix - 2 * mirror @ (mirror.T @ matrix)
        matrix = matrix - 2 * (matrix @ mirror) @ mirror.T
    return (matrix + matrix.T) / 2


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=3584)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument(
        "--rank", type=int, default=64, help="protected rank of the filter and of the constrained solve"
    )
    parser.add_argument(
        "--rounds", type=int, default=20, help="rounds of MEMIT with memory: the last is compared with the first"
    )
    parser.add_argument("--condition", type=float, default=1e6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch on the CPU; 0: as many as it likes")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of the processor instead of the wall's; use one thread"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, repeat = arguments.device, arguments.repeat
    timed = partial(clocked, clock=time.process_time if arguments.cpu_time else time.perf_counter)
    outputs, inputs, facts, rank = arguments.outputs, arguments.inputs, arguments.facts, arguments.rank
    generator = torch.Generator().manual_seed(arguments.seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    weight = 15000.0
    moment_II = moment_of_condition(inputs, arguments.condition, device, arguments.seed)
    keys, residual = drawn(inputs, facts), drawn(outputs, facts)
    moment = SecondMoment(moment_II, weight, device=device)
    basis = SpectralBasis(
        left_DK=orthonormalise(drawn(outputs, rank)),
        right_EK=orthonormalise(drawn(inputs, rank)),
        singular_values=torch.ones(min(outputs, inputs)),
        frobenius=1.0,
        shape=(outputs, inputs),
    )
    results: dict[str, dict[str, float]] = {}
    took, _ = timed(moment.factor, device)
    results["factor λC, once a base"] = {"seconds": took, "ridge": moment.applied_ridge}

    editor = get_editor("memit")
    problem = LayerProblem(keys_IN=keys, residual_ON=residual, second_moment=moment)
    constrained = LayerProblem(
        keys_IN=keys,
        residual_ON=residual,
        second_moment=moment,
        protected=ProtectedSpace.of(basis, rank, transposed=False),
    )
    ours, update = timed(lambda: editor.solve(problem, editor.settings()).update, device, repeat)
    assert isinstance(update, FactoredUpdate)
    results["solve"] = {"seconds": ours}
    results["filter"] = {
        "seconds": timed(lambda: filter_factors(update.left_OR, update.right_RI, basis, rank), device, repeat)[0]
    }
    results["constrained solve"] = {
        "seconds": timed(lambda: editor.solve(constrained, editor.settings()), device, repeat)[0]
    }

    def plain() -> Tensor:
        k, r = keys.double(), residual.double()
        solved: Tensor = torch.linalg.solve(weight * moment_II + k @ k.T, k @ r.T).T
        return solved

    took, wanted = timed(plain, device)
    results["plain I × I solve"] = {"seconds": took}
    error = float(torch.linalg.matrix_norm(update.dense() - wanted) / torch.linalg.matrix_norm(wanted))
    results["solve"].update(
        relative_error=error,
        times_faster_than_plain=took / ours,
        times_faster_with_the_factor_over_200_rounds=took / (ours + results["factor λC, once a base"]["seconds"] / 200),
    )

    settings = editor.settings({"memory": "keys"})
    memory, rounds = editor.begin(settings, outputs, inputs), []
    for _ in range(arguments.rounds):
        keys, residual = drawn(inputs, facts), drawn(outputs, facts)
        problem = LayerProblem(keys_IN=keys, residual_ON=residual, second_moment=moment, memory=memory)

        def one_round(problem: LayerProblem = problem, keys: Tensor = keys) -> Any:
            solution = editor.solve(problem, settings)
            return solution.update, editor.remember(solution.memory, keys)

        took, (_, memory) = timed(one_round, device)
        rounds.append(took)
    results["with memory"] = {"first_round_seconds": rounds[0], "last_round_seconds": rounds[-1], "rounds": len(rounds)}
    return {
        **machine(),
        "schema": 1,
        "benchmark": "solve",
        "outputs": outputs,
        "inputs": inputs,
        "facts": facts,
        "condition": arguments.condition,
        "device": device,
        "results": results,
    }


def kept_factor(size: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Return what the Cholesky factor of a second moment costs on the CPU: computed, saved, and read again."""
    timed = partial(clocked, clock=clock)
    moment = SecondMoment(moment_of_condition(size, 1e6, "cpu", 0).float(), 1.0)
    computing, factor_II = timed(moment.factor, "cpu")
    with tempfile.TemporaryDirectory() as name:
        store = MatrixStore(lambda tensor: Path(name) / "factor.safetensors", "factor")
        saving, _ = timed(lambda: store.save("w", "0" * 64, {"factor": packed(factor_II)}, {}), "cpu")
        reading, again = timed(lambda: store.load("w", "0" * 64), "cpu", 3)
        unpacking, whole_II = timed(lambda: unpacked(again[0]["factor"], size), "cpu")
        assert torch.equal(whole_II, factor_II)
        size_on_disk = (Path(name) / "factor.safetensors").stat().st_size
    return {
        "inputs": size,
        "factor_computed_s": computing,
        "factor_saved_s": saving,
        "factor_read_s": reading + unpacking,
        "times_faster_read": computing / (reading + unpacking),
        "bytes": size_on_disk,
    }


if __name__ == "__main__":
    print(json.dumps(measure(parse()), indent=2, ensure_ascii=False))
