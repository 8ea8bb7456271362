"""The proof on facts that people wrote down: a Llama is trained on CounterFact and edited thousands of times.

On one H200, from the repository's root, in three runs of at most ten minutes each, with the data in the tree that is there:

    export PYTHONPATH=$PWD
    medium="python3 tests/benchmarks/medium.py --data shared/data --out $OUT --model /tmp/medium --minutes 9"
    $medium --stage train+memit
    $medium --stage train+memit+alphaedit+long
    $medium --stage train+long+others+seeds

A machine that stays warm keeps the model in /tmp; another trains it again. Cases that OUT/medium.json holds whole are not run
again, so put that file back into OUT before the next run where OUT is emptied. `--size reduced --out DIR` goes the same way at a
size for two CPU cores, in a few minutes.

Stages: `train` trains the model unless it is there; `memit` and `alphaedit` make `--edits` edits in rounds of 100, without a
filter and under REVIVE; `long` does so with both at `--long` edits; `others` are RECT, NSE, PRUNE and UltraEdit; `seeds` are
two more draws of facts for all but PRUNE and UltraEdit. When `--minutes` are nearly over, the case at hand is measured a last
time and saved as it is, marked as not complete. Blocks and λ are those that `reviver doctor` advises, AlphaEdit's cost follows
from the same rule, and the file says which they are. It is read by `proof.py --table --out FILE`, with `--figure` if wanted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from counterfact_world import make_world, real_text
from medium_cases import FILTERS, RECORD, STAGES, edit_model, plans, write_inputs
from medium_training import TRAINING, train_model
from patient import ROOT

from reviver.settings import parse_layers

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
    parser.add_argument("--filters", nargs="*", default=FILTERS, help="also `constrained`")
    parser.add_argument("--setting", action="append", default=[], metavar="EDITOR.NAME=VALUE", help="VALUE is JSON")
    parser.add_argument(
        "--given",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a setting of the workspace, such as `targets.prefixes=0`; `moments.corpus=null`: text of the model's own",
    )
    # Text is made ahead by processes of their own, so that a GPU need not wait for it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(0, cores - 3) if torch.cuda.is_available() else 0
    column = NAMES.index(parser.parse_known_args()[0].size)
    figures = {name: values[column] for name, values in FIGURES.items()}
    for name, value in {"seed": 0, "workers": workers, **figures}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--steps", type=int, help="training steps, instead of as many as the time allows")
    parser.add_argument("--facts", type=int, help="known facts that can be edited at most")
    parser.add_argument("--unsaid", type=int, default=0, help="edits at most of facts that training did not say")
    parser.set_defaults(**FIXED[NAMES[column]])
    arguments = parser.parse_args()
    if any(one.startswith("moments.weight=") for one in arguments.given):
        parser.error("λ is told with --weight")
    unknown = set(arguments.stage.split("+")) - set(STAGES)
    if unknown:
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    return arguments


def main() -> None:
    """Train the model unless it is there, and run what the stages ask for."""
    arguments = parse()
    model = arguments.model or arguments.out / "model"
    arguments.out.mkdir(parents=True, exist_ok=True)
    world = make_world(arguments.data, seed=arguments.seed, limit=arguments.facts, unsaid=arguments.unsaid)
    text = real_text(arguments.data)
    write_inputs(arguments, world, text)
    if not (model / TRAINING).exists():
        if "train" not in arguments.stage.split("+"):
            sys.exit(f"there is no model in {model}: add the stage `train`")
        train_model(arguments, world, text, model)
    if plans(arguments.stage.split("+"), arguments.edits, arguments.long):
        edit_model(arguments, world, text, model)


if __name__ == "__main__":
    main()
