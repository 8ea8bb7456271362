"""How well one batch of facts takes, and what it costs the rest: facts drawn by seed, several editors and filters.

`python tests/benchmarks/quality.py` edits the packaged model with 50 facts of `edits/world.jsonl` for each of three seeds,
without a filter and under several protected ranks, and prints a table; `--json FILE` keeps the figures with machine and
date. Facts are drawn from all there are, whether the model knew them or not; neighbours count where the base answers
them rightly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from patient import FACTS, MODEL, Patient, draw, held_out_texts, machine

from reviver.evaluation.outcomes import observe, summarize
from reviver.evaluation.perplexity import perplexity

SHARES = ("efficacy", "paraphrase", "neighbors_kept", "success")


def measure(
    patient: Patient, texts: list[str], arguments: argparse.Namespace, case: dict[str, object], seed: int
) -> dict[str, float]:
    """Edit the base with the facts of one seed and return the shares, the largest growth of a norm, and the perplexity."""
    facts = draw(arguments.facts, arguments.count, seed)
    patient.rewind()
    before = observe(patient.model, facts)
    layers = patient.edit(facts, round_size=arguments.round_size, weight=arguments.weight, **case)  # type: ignore[arg-type]
    after = observe(patient.model, facts)
    summary = asdict(summarize(before, after, [one.neighbors for one in before]))
    figures = {name: float(summary[name]) for name in SHARES if summary[name] is not None}
    norms = [edited.total.norm() / float(torch.linalg.vector_norm(edited.base_DE)) for edited in layers]
    return {**figures, "relative_norm": max(norms), "perplexity": perplexity(patient.model, texts)}


def cases(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Return what is compared: every editor without a filter, under each protected rank, and with the constrained solve."""
    found: list[dict[str, object]] = []
    for editor in arguments.editors:
        found.append({"editor": editor, "filter_name": "none"})
        found += [{"editor": editor, "filter_name": "revive", "rank": rank} for rank in arguments.ranks]
        found += [{"editor": editor, "filter_name": "constrained", "rank": rank} for rank in arguments.constrained]
    return found


def main() -> None:
    """Run all seeds and cases and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--facts", type=Path, default=FACTS)
    parser.add_argument("--count", type=int, default=50, help="facts of one batch")
    parser.add_argument("--round-size", type=int, default=100, help="facts of one round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--editors", nargs="*", default=["memit"])
    parser.add_argument("--ranks", type=int, nargs="*", default=[3, 8, 16, 32], help="protected ranks")
    parser.add_argument(
        "--constrained", type=int, nargs="*", default=[8], help="protected ranks of the constrained solve"
    )
    parser.add_argument("--weight", type=float, help="λ, instead of the preset's")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    texts = held_out_texts()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        patient = Patient(Path(folder), arguments.model)
        base = perplexity(patient.model, texts)
        for case in cases(arguments):
            runs = [measure(patient, texts, arguments, case, seed) for seed in range(arguments.seeds)]
            rows.append({**case, "runs": runs})
            shown = "  ".join(
                f"{key} {statistics.mean(run[key] for run in runs):.3f} ({min(run[key] for run in runs):.3f}-"
                f"{max(run[key] for run in runs):.3f})"
                for key in runs[0]
            )
            print(f"{case['editor']:10} {case['filter_name']:12} k={case.get('rank', '-'):<3} {shown}", flush=True)
    print(f"base perplexity {base:.3f}")
    if arguments.json:
        record = {
            **machine(),
            "facts": arguments.count,
            "round_size": arguments.round_size,
            "moment_weight": arguments.weight or patient.preset.moment_weight,
            "layers": list(patient.preset.layers),
            "base_perplexity": base,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
