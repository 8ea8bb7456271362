"""Tasks of lm-eval, the community's harness, on a model that is in memory already; needs the extra `eval`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from reviver.editing.model import EditableModel
from reviver.errors import EvaluationError, ResourceError
from reviver.text import printable

BATCH = 16
"""How many examples lm-eval puts through the model at once."""


def check_harness() -> None:
    """Raise unless lm-eval is installed.

    Raises:
        ResourceError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise ResourceError(
            "the suite `lm-eval` needs the package `lm-eval`",
            hint="run `pip install 'reviver[eval]'`, or leave the suite out",
        )


def run_tasks(model: EditableModel, tasks: Sequence[str], *, limit: int | None = None) -> dict[str, dict[str, float]]:
    """Return the metrics of every task by name; those of filters other than none are named `metric,filter`.

    Args:
        model: the model, which stays as it is.
        tasks: names of lm-eval's tasks.
        limit: at most so many examples of each.

    Raises:
        ResourceError: lm-eval is not installed.
        EvaluationError: it refuses, for example because it knows no such task or a data set cannot be fetched.
    """
    check_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        language_model = HFLM(pretrained=model.network, tokenizer=model.tokenizer, batch_size=BATCH)
        results = simple_evaluate(model=language_model, tasks=list(tasks), limit=limit, log_samples=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EvaluationError(
            f"lm-eval refused: {printable(first, 160)}",
            hint="see its tasks with `lm_eval ls tasks`; their data sets have to be on this machine or in reach",
        ) from error
    return {name: _metrics(found) for name, found in sorted(results["results"].items())}


def _metrics(found: Mapping[str, Any]) -> dict[str, float]:
    return {
        key.removesuffix(",none"): float(value)
        for key, value in sorted(found.items())
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
