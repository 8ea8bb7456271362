"""The proof on facts that people wrote down: a Llama is trained on CounterFact and edited thousands of times.

On one H200, from the repository's root, in three runs of at most ten minutes each, with the data in the tree that is there:

    export PYTHONPATH=$PWD
    medium="python3 tests/benchmarks/medium.py --data shared/data --out $OUT --model /tmp/medium --minutes 9"
    $medium --stage train+memit
    $medium --stage train+memit+alphaedit+long
    $medium --stage train+long+others+seeds

A machine that stays warm keeps the model in /tmp; another trains it again. Cases that OUT/medium.json holds whole are not run
again, so put that file back into OUT before the next run where OUT is emptied. `--reduced --out DIR` goes the same way at a
size for two CPU cores, in a few minutes.

Stages: `train` trains the model unless it is there; `memit` and `alphaedit` make `--edits` edits in rounds of 100, without a
filter and under REVIVE; `long` does so with both at `--long` edits; `others` are RECT, NSE, PRUNE and UltraEdit; `seeds` are
two more draws of facts for all but PRUNE and UltraEdit. When `--minutes` are nearly over, the case at hand is measured a last
time and saved as it is, marked as not complete. Blocks and λ are those that `reviver doctor` advises, AlphaEdit's cost follows
from the same rule, and the file says which they are. It is read by `proof.py --table --out FILE`, with `--figure` if wanted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from counterfact_world import CounterFactWorld, Library, RealText, held_out_texts, make_world, minimal_pairs, real_text
from medium_probe import editor_settings, knowledge, probe
from medium_training import STARTED, TRAINING, say, train_model
from patient import ROOT, Patient, machine
from proof import Case, load, store

from reviver.demo.recipe.world import unmarked
from reviver.errors import NumericsError
from reviver.facts.fact import Fact
from reviver.settings import parse_layers

RECORD = "medium.json"
STAGES = ("train", "memit", "alphaedit", "long", "others", "seeds")
FILTERS = ("none", "revive")
# Tokens that a search for targets carries at once where memory is no question; no case begins with less time than this, in seconds.
GPU_TOKENS, LEAST_SECONDS = 2**18, 30.0
CORPUS_DOCUMENTS = 3000
# Every figure as it is for the medium model, for the small one, and for one that only shows that the path works.
NAMES = ("medium", "small", "reduced")
FIGURES: dict[str, tuple[float, float, float]] = {
    "hidden": (768, 224, 128),
    "layers": (12, 8, 4),
    "heads": (12, 7, 4),
    "mlp": (3072, 2048, 512),
    "vocabulary": (16384, 4096, 4096),
    "row_length": (256, 256, 128),
    "rows": (128, 16, 16),
    "rate": (1e-3, 2e-3, 3e-3),
    # Real text is less than a million words: a larger share of many tokens would be learnt by heart.
    "real_share": (0.08, 0.6, 0.08),
    "tokenizer_documents": (20000, 2000, 1000),
    "edits": (10000, 1000, 100),
    "long": (20000, 1200, 150),
    "round_size": (100, 50, 25),
    "points": (4, 3, 2),
    "sample": (2000, 400, 60),
    "pairs_each": (15, 4, 2),
    "texts": (300, 60, 40),
}
FIXED: dict[str, dict[str, Any]] = {
    "medium": {},
    "small": {"steps": 2000, "facts": 1200, "minutes": 600.0},
    "reduced": {"steps": 700, "facts": 150, "stage": "train+memit+alphaedit+others"},
}


@dataclass(frozen=True)
class Plan:
    """One case: an editor under a filter, with the first of a seed's facts."""

    editor: str
    filter: str
    edits: int
    seed: int = 0


def plans(stages: list[str], edits: int, long: int) -> list[Plan]:
    """Return the cases of some stages, in the stages' order."""
    of_stage = {
        "train": [],
        "memit": [("memit", edits, 0)],
        "alphaedit": [("alphaedit", edits, 0)],
        "long": [("memit", long, 0), ("alphaedit", long, 0)],
        "others": [(editor, edits, 0) for editor in ("rect", "nse", "prune", "ultraedit")],
        "seeds": [(editor, edits, seed) for seed in (1, 2) for editor in ("memit", "alphaedit", "rect", "nse")],
    }
    return [
        Plan(editor, name, count, seed)
        for stage in STAGES
        if stage in stages
        for editor, count, seed in of_stage[stage]
        for name in FILTERS
    ]


def edit_model(arguments: argparse.Namespace, world: CounterFactWorld, text: RealText, model: Path) -> None:
    """Run the cases of the stages until the time is up, and save each as it goes."""
    deadline = STARTED + 60 * arguments.minutes
    todo = plans(arguments.stage.split("+"), arguments.edits, arguments.long)
    todo = [plan for plan in todo if not arguments.editors or plan.editor in arguments.editors]
    pairs = minimal_pairs(arguments.data, arguments.pairs_each)
    texts = held_out_texts(text, arguments.seed, arguments.texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        documents = Library.of(world, text, arguments.seed, arguments.real_share).documents("second moments")
        lines = (json.dumps({"text": unmarked(one)}) for one in itertools.islice(documents, CORPUS_DOCUMENTS))
        corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
        given: dict[str, object] = {"apply.device": arguments.device, "moments.corpus": str(corpus)}
        probed: dict[str, Any] = {"fit": None, "layers": arguments.blocks, "weight": arguments.weight}
        if not (arguments.blocks and arguments.weight):
            probed = probe(folder, model, world.edits, given)
            probed |= {"layers": arguments.blocks or probed["layers"], "weight": arguments.weight or probed["weight"]}
        say(f"blocks {probed['layers']}, λ = {probed['weight']:g}, fit: {probed['fit']}")
        patient = Patient(folder / "workspace", model, {**given, "model.layers": tuple(probed["layers"])})
        record = load(arguments.out / RECORD) | machine() | {"size": arguments.size, "probe": probed}
        if arguments.size == "reduced":
            record["note"] = "shows that the path works, not what the medium model does"
        record["model"] = json.loads((model / TRAINING).read_text(encoding="utf-8"))
        fingerprint = patient.preparation.pin.fingerprint
        record["model"] |= {"fingerprint": fingerprint, "knows": knowledge(patient, sample(world, 0, arguments.sample))}
        fitted = probed["editor_settings"] = editor_settings(patient, sample(world, 0, arguments.sample))
        say(f"the base knows {record['model']['knows']}; {fitted}")
        store(arguments.out / RECORD, record)
        case: Case | None = None
        for number, plan in enumerate(todo):
            rank = None if plan.filter == "none" else arguments.rank or patient.preset.rank
            asked, search = given_to(arguments, plan.editor), searched(arguments)
            key = f"{plan.editor} {plan.filter} k={rank} seed={plan.seed} edits={plan.edits}"
            told = {**asked, **search}
            key += "".join(f" {name}={value}" for name, value in told.items())
            settings = {**fitted.get(plan.editor, {}), **asked}
            options = {"rank": rank, "weight": probed["weight"], "editor_settings": settings, "targets": search}
            if record["cases"].get(key, {}).get("complete"):
                continue
            if deadline - time.monotonic() < min(LEAST_SECONDS, 6 * arguments.minutes):
                say(f"out of time before: {', '.join(map(str, todo[number:]))}")
                break
            facts = sample(world, plan.seed, plan.edits)
            if case is None or case.facts != facts:
                case = Case(patient, facts, pairs, texts, sample=arguments.sample)
            try:
                run_case(arguments, case, plan, key, record, deadline, options, told)
            except NumericsError as error:
                # What was measured before is saved; a model that is gone so far has nothing left to measure.
                say(f"{key}: {error.message}")
                record["cases"].get(key, {}).update(complete=True, ended=error.message)
                store(arguments.out / RECORD, record)


def sample(world: CounterFactWorld, seed: int, count: int) -> list[Fact]:
    """Return the first of a seed's facts: more of the same seed go on where fewer end."""
    return random.Random(seed).sample(world.edits, len(world.edits))[:count]


def given_to(arguments: argparse.Namespace, editor: str) -> dict[str, Any]:
    """Return the settings that were given for an editor."""
    settings = (one.replace("=", ".", 1).split(".", 2) for one in arguments.setting)
    return {name: json.loads(value) for owner, name, value in settings if owner == editor}


def searched(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the settings that were given for the search of targets."""
    return {name: json.loads(value) for name, _, value in (one.partition("=") for one in arguments.target)}


def run_case(
    arguments: argparse.Namespace,
    case: Case,
    plan: Plan,
    key: str,
    record: dict[str, Any],
    deadline: float,
    options: dict[str, Any],
    told: dict[str, Any],
) -> None:
    """Run one case, and save what is measured each time that everything was."""
    size = arguments.round_size
    rounds = -(-len(case.facts) // size)
    points = {-(-rounds * part // arguments.points) for part in range(1, arguments.points + 1)}
    earlier = record["cases"].get(key)

    def keep(measured: list[dict[str, Any]]) -> None:
        end = measured[-1]["edits"]
        if earlier is not None and earlier["points"][-1]["edits"] > end:
            return
        record["cases"][key] = {
            **asdict(plan),
            **options,
            "settings": told,
            "model": record["model"]["fingerprint"],
            "complete": end == len(case.facts),
            "base": case.general,
            "points": measured,
        }
        store(arguments.out / RECORD, record)
        shown = {name: round(value, 3) for name, value in measured[-1].items() if isinstance(value, float)}
        say(f"{key}: {end} {shown}")

    budget = {"token_budget": GPU_TOKENS} if case.patient.model.device.type == "cuda" else {}
    options = {**options, "targets": {**options["targets"], **budget}}
    case.run(
        points,
        {"editor": plan.editor, "filter_name": plan.filter, "round_size": size, **options},
        drift_every=max(1, rounds // 20),
        deadline=deadline,
        save=keep,
    )


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside, inside = ROOT.parent / "shared" / "data", ROOT / "shared" / "data"
    data = beside if beside.exists() else inside
    parser.add_argument("--data", type=Path, default=data, help="folder of the published records")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {RECORD}, gone on with where it is there")
    parser.add_argument("--model", type=Path, help="folder of the model, instead of OUT/model")
    parser.add_argument("--stage", default="+".join(STAGES), help="stages, joined by `+`")
    parser.add_argument("--minutes", type=float, default=9.0, help="from the start to the end of everything")
    parser.add_argument("--train-minutes", type=float, default=4.5, help="from the start to the end of the training")
    parser.add_argument(
        "--size", choices=NAMES, default="medium", help="of the model and of everything that is done with it"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    parser.add_argument("--rank", type=int, help="protected rank instead of the preset's")
    parser.add_argument("--blocks", type=parse_layers, help="blocks to edit instead of the advised ones, such as `3-6`")
    parser.add_argument("--weight", type=float, help="λ instead of the advised one")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=VALUE", help="of the search for targets")
    parser.add_argument("--editors", nargs="*", help="of the stages' editors, these alone")
    parser.add_argument("--setting", action="append", default=[], metavar="EDITOR.NAME=VALUE", help="VALUE is JSON")
    # Text is made ahead by processes of their own, so that a GPU need not wait for it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(0, cores - 3) if torch.cuda.is_available() else 0
    column = NAMES.index(parser.parse_known_args()[0].size)
    figures = {name: values[column] for name, values in FIGURES.items()}
    for name, value in {"seed": 0, "workers": workers, **figures}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--steps", type=int, help="training steps, instead of as many as the time allows")
    parser.add_argument("--facts", type=int, help="facts that can be edited at most")
    parser.set_defaults(**FIXED[NAMES[column]])
    arguments = parser.parse_args()
    unknown = set(arguments.stage.split("+")) - set(STAGES)
    if unknown:
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    return arguments


def main() -> None:
    """Train the model unless it is there, and run what the stages ask for."""
    arguments = parse()
    model = arguments.model or arguments.out / "model"
    arguments.out.mkdir(parents=True, exist_ok=True)
    world = make_world(arguments.data, seed=arguments.seed, limit=arguments.facts)
    text = real_text(arguments.data)
    if not (model / TRAINING).exists():
        if "train" not in arguments.stage.split("+"):
            sys.exit(f"there is no model in {model}: add the stage `train`")
        train_model(arguments, world, text, model)
    if plans(arguments.stage.split("+"), arguments.edits, arguments.long):
        edit_model(arguments, world, text, model)


if __name__ == "__main__":
    main()
