"""Whether a new release of a model inherits the corrections of the last one: `reapply` on a further-trained copy.

`python tests/benchmarks/reapply.py` trains the packaged model further, twice: on its own world, and on one in which half of the
facts have become what the corrections say (`news`). For each of three seeds, 50 facts of `edits/world.jsonl` are applied to the
packaged model under the defaults (MEMIT, k = 8), and `reviver reapply` solves for them again on each release. Prints a table;
`--json FILE` keeps the figures with machine and date. It takes about five minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from further import Training, changes, train_further
from patient import FACTS, MODEL, draw, held_out_texts, machine

from reviver.demo.recipe.measure import Reader
from reviver.evaluation.outcomes import Summary
from reviver.facts.fact import facts_to_jsonl
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init
from reviver.verbs.reapply import reapply

FIGURES = ("efficacy", "paraphrase", "neighbors_kept", "success", "known")


def make_first(folder: Path, count: int, seeds: int) -> dict[int, dict[str, float]]:
    """Make a workspace in which the facts of each seed are a version on the base, `v1` for seed 0, and return their figures."""
    folder.mkdir()
    settings = Settings.load(folder)
    init(folder, str(MODEL), settings=settings)
    found = {}
    for seed in range(seeds):
        facts = folder / f"facts-{seed}.jsonl"
        facts.write_bytes(facts_to_jsonl(draw(FACTS, count, seed)))
        report = apply(folder, ApplyRequest(facts=facts, parent="base"), settings=settings)
        found[seed] = figures(report.summary)
    return found


def make_again(folder: Path, release: Path, first: Path, seeds: int) -> dict[int, dict[str, float]]:
    """Make a workspace of the release, apply the first one's versions again, each on the base, and return their figures."""
    init(folder, str(release), settings=Settings.load(folder))
    found = {}
    for seed in range(seeds):
        report = reapply(folder, f"v{seed + 1}", onto="base", from_workspace=first)
        found[seed] = figures(report.applied.summary)
    return found


def figures(summary: Summary | None) -> dict[str, float]:
    """Return what is compared: shares, and how many facts were known before."""
    assert summary is not None
    return {name: value for name, value in asdict(summary).items() if name in FIGURES and value is not None}


def news(count: int, seeds: int) -> dict[str, str]:
    """Return the first half of every seed's facts, as the corrections say them, by their ids."""
    return {fact.id: fact.target_new for seed in range(seeds) for fact in draw(FACTS, count, seed)[: count // 2]}


def held_out_perplexity(folder: Path) -> float:
    """Return the perplexity of prose that no training has read."""
    texts = held_out_texts()
    read = Reader(folder).losses([""] * len(texts), texts)
    return math.exp(sum(loss for loss, _, _ in read) / sum(count for _, count, _ in read))


def measure_release(
    folder: Path, first: Path, training: Training, changed: Mapping[str, str], seeds: int
) -> dict[str, Any]:
    """Make one release in an empty folder and apply everything again on it."""
    (folder / "workspace").mkdir(parents=True)
    train_further(folder / "model", training, changed, report=lambda line: print(line, flush=True))
    edited = Workspace.open(first).pin().edited
    moved = changes(folder / "model")
    again = make_again(folder / "workspace", folder / "model", first, seeds)
    return {
        "changed_facts": len(changed),
        "perplexity": held_out_perplexity(folder / "model"),
        "edited_tensors": {name: asdict(moved[name]) for name in edited},
        "least_entries_changed_of_a_matrix": min(
            change.entries for name, change in moved.items() if "norm" not in name
        ),
        "runs": again,
    }


def main() -> None:
    """Measure all releases and seeds and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="facts of a version")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Training().steps, help="of further training")
    parser.add_argument("--rate", type=float, default=Training().peak_rate, help="its highest learning rate")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    training = Training(steps=arguments.steps, peak_rate=arguments.rate)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = make_first(folder / "first", arguments.count, arguments.seeds)
        releases = {
            name: measure_release(folder / name, folder / "first", training, changed, arguments.seeds)
            for name, changed in (("same", {}), ("news", news(arguments.count, arguments.seeds)))
        }
    record = {
        **machine(),
        "facts": arguments.count,
        "training": asdict(training),
        "base_perplexity": held_out_perplexity(MODEL),
        "first": first,
        "releases": releases,
    }
    for name, runs in (("first", first), *((name, release["runs"]) for name, release in releases.items())):
        for seed, run in runs.items():
            print(f"{name:6} seed {seed}  " + "  ".join(f"{key} {value:.3g}" for key, value in run.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
