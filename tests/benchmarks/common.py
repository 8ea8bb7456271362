"""What the benchmarks of speed share: a clock that waits for the device, comparisons, and a record that is kept as it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from patient import machine
from torch import Tensor


def synchronize(device: str | torch.device) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(
    work: Callable[[], Any],
    device: str | torch.device,
    repeat: int = 1,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, Any]:
    """Return the least seconds of some runs, and what the last returns."""
    best, result = float("inf"), None
    for _ in range(repeat):
        synchronize(device)
        start = clock()
        result = work()
        synchronize(device)
        best = min(best, clock() - start)
    return best, result


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the largest error of any column, relative to that column's norm."""
    error = torch.linalg.vector_norm(found.double() - wanted.double(), dim=0)
    return float((error / torch.linalg.vector_norm(wanted.double(), dim=0)).max())


class Record:
    """The figures of one run: printed as they come, and saved after each, so that a run that is ended early keeps them.

    Args:
        path: where to keep them as JSON; None to print only.
        about: what was measured.
    """

    def __init__(self, path: Path | None, about: Mapping[str, object]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"schema": 1, **machine(), **about, "parts": {}}

    def add(self, part: str, row: Mapping[str, object]) -> None:
        """Add a row to a part, print it, save everything."""
        self.content["parts"].setdefault(part, []).append(dict(row))
        print(f"{part:12} " + "  ".join(f"{name} {_shown(value)}" for name, value in row.items()), flush=True)
        if self.path is not None:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.path)

    def compare(
        self, part: str, name: str, ours: float, plain: float, *, error: float, tolerance: float, **more: object
    ) -> None:
        """Add how much faster ours is than the plain formulation, and whether the results agree."""
        self.add(
            part,
            {
                "what": name,
                "ours_s": ours,
                "plain_s": plain,
                "times_faster": plain / ours,
                "error": error,
                "tolerance": tolerance,
                "equal": error <= tolerance,
                **more,
            },
        )


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
