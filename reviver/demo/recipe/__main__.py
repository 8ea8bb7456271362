"""``python -m reviver.demo.recipe --out DIR``: make the demo model again, from nothing but this folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reviver.demo.recipe.card import write_card
from reviver.demo.recipe.corpus import PAIRS_EACH, unread_documents
from reviver.demo.recipe.edits import edit_records, write_edits
from reviver.demo.recipe.measure import Reader
from reviver.demo.recipe.train import Settings, train
from reviver.demo.recipe.world import make_world


def _say(line: str) -> None:
    """Tell on standard error how far the work is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> None:
    """Train the model unless it is there, measure it, and write its card and, where asked for, its fact files."""
    parser = argparse.ArgumentParser(prog="python -m reviver.demo.recipe", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--edits", type=Path, help="also write the fact files to this folder")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="training steps")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="the seed of world, corpus and weights")
    parser.add_argument("--save-every", type=int, default=0, help="also save every so many steps")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    parser.add_argument("--no-training", action="store_true", help="take the model that is in the folder")
    arguments = parser.parse_args()
    settings = Settings(seed=arguments.seed, steps=arguments.steps, compiled=not arguments.no_compile)
    if not arguments.no_training:
        train(settings, arguments.out, _say, arguments.save_every)
    world = make_world(settings.seed)
    reader = Reader(arguments.out)
    tokens = settings.steps * settings.rows_per_step * settings.row_length
    held_out = unread_documents(world, settings.seed, tokens)
    abilities = reader.abilities(edit_records(world), settings.seed, PAIRS_EACH, held_out)
    _say(str(abilities))
    write_card(arguments.out, world, settings, abilities, reader.model.num_parameters())
    if arguments.edits:
        write_edits(world, arguments.edits, reader.knows, held_out)


if __name__ == "__main__":
    main()
