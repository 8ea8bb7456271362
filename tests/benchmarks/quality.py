"""How well one batch of facts takes, and what it costs the rest: facts drawn by seed, several filters, the same targets.

`python tests/benchmarks/quality.py` edits the packaged model with 50 facts of `edits/world.jsonl` for each of three seeds,
without a filter and under several protected ranks, and prints a table; `--json FILE` keeps the figures with machine and
date. Facts are drawn from all there are, whether the model knew them or not; neighbours count where the base answers
them rightly.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from reviver.editing.base import open_base, open_pinned, put_version, saved_preset
from reviver.editing.editors import get_editor
from reviver.editing.model import EditableModel
from reviver.editing.prefixes import write_prefixes
from reviver.editing.preparation import Preparation
from reviver.editing.rounds import RoundSettings
from reviver.editing.session import FilterChoice, choose_ranks, open_layers, run_rounds, split_rounds
from reviver.editing.targets import TargetSettings
from reviver.evaluation.outcomes import observe, summarize
from reviver.evaluation.perplexity import perplexity
from reviver.facts.fact import Fact
from reviver.facts.reader import read_facts
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.verbs.init import init

ROOT = Path(__file__).parents[2]
SHARES = ("efficacy", "paraphrase", "neighbors_kept", "success")


class Bench:
    """The packaged model, prepared once, to be edited again and again from its base."""

    def __init__(self, folder: Path, model: Path, moment_weight: float | None) -> None:
        settings = Settings.load(folder, {"moments.length": 64, "apply.rank": 64})
        init(folder, str(model), settings=settings)
        workspace = Workspace.open(folder)
        pin = workspace.pin()
        self.folder = open_base(pin)
        self.model: EditableModel = open_pinned(pin, self.folder, settings, torch.device("cpu"))
        self.preparation = Preparation(workspace, pin, self.folder)
        self.preset = saved_preset(pin, self.folder)
        self.moment_weight = moment_weight or self.preset.moment_weight
        lines = (ROOT / "edits" / "held-out.txt").read_text(encoding="utf-8").splitlines()
        self.texts = [line for line in lines if line.strip()]

    def run(self, facts: Sequence[Fact], filter_name: str, rank: int | None, round_size: int) -> dict[str, float]:
        """Edit the base with some facts and return the shares and the perplexity."""
        put_version(self.model, self.folder, {name: [] for name in self.preparation.pin.edited})
        choice = FilterChoice(name=filter_name, rank=rank, energy=None)
        editor = get_editor("memit")
        layers = open_layers(
            self.model,
            self.preparation,
            {},
            choose_ranks(self.preparation, choice, self.model.device),
            editor,
            moment_weight=self.moment_weight,
        )
        before = observe(self.model, facts)
        preset = self.preset
        settings = RoundSettings(
            editor=editor,
            editor_settings=editor.settings({}),
            filter=filter_name,
            targets=TargetSettings(
                steps=preset.steps,
                learning_rate=preset.learning_rate,
                clamp=preset.clamp,
                weight_decay=preset.weight_decay,
                kl=preset.kl,
            ),
            maximum_relative_norm=float("inf"),
        )
        prefixes = write_prefixes(self.model, count=5, tokens=10, seed=0)
        run_rounds(self.model, layers, split_rounds(facts, round_size), prefixes, settings)
        summary = asdict(summarize(before, observe(self.model, facts)))
        figures = {name: float(summary[name]) for name in SHARES if summary[name] is not None}
        norms = [edited.total.norm() / float(torch.linalg.vector_norm(edited.base_DE)) for edited in layers]
        return {**figures, "relative_norm": max(norms), "perplexity": perplexity(self.model, self.texts)}


def main() -> None:
    """Run all seeds and filters and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "reviver" / "demo" / "model")
    parser.add_argument("--facts", type=Path, default=ROOT / "edits" / "world.jsonl")
    parser.add_argument("--count", type=int, default=50, help="facts of one batch")
    parser.add_argument("--round-size", type=int, default=100, help="facts of one round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="*", default=[3, 8, 16, 32], help="protected ranks")
    parser.add_argument(
        "--constrained", type=int, nargs="*", default=[8], help="protected ranks of the constrained solve"
    )
    parser.add_argument("--weight", type=float, help="λ, instead of the preset's")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    facts = read_facts(arguments.facts).facts
    cases: list[tuple[str, int | None]] = [("none", None)]
    cases += [("revive", rank) for rank in arguments.ranks]
    cases += [("constrained", rank) for rank in arguments.constrained]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.model, arguments.weight)
        base = perplexity(bench.model, bench.texts)
        for name, rank in cases:
            runs = []
            for seed in range(arguments.seeds):
                drawn = random.Random(seed).sample(list(facts), arguments.count)
                runs.append(bench.run(drawn, name, rank, arguments.round_size))
            rows.append({"filter": name, "rank": rank, "runs": runs})
            shown = "  ".join(
                f"{key} {statistics.mean(run[key] for run in runs):.3f} ({min(run[key] for run in runs):.3f}-"
                f"{max(run[key] for run in runs):.3f})"
                for key in runs[0]
            )
            print(f"{name:12} k={rank or '-':<3} {shown}", flush=True)
    print(f"base perplexity {base:.3f}")
    if arguments.json:
        record = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "facts": arguments.count,
            "round_size": arguments.round_size,
            "moment_weight": bench.moment_weight,
            "layers": list(bench.preset.layers),
            "base_perplexity": base,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
