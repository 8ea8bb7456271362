"""Training of the medium model: its text, made ahead of the GPU by other processes, and as many steps as the time allows."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from counterfact_world import CounterFactWorld, Library, RealText

from reviver.demo.recipe.corpus import Rows, rows
from reviver.demo.recipe.prose import Prose
from reviver.demo.recipe.train import Settings as TrainSettings
from reviver.demo.recipe.train import bpe_tokenizer, fit, make_model, make_optimizer, save, train_step
from reviver.demo.recipe.world import fill
from reviver.editing.model import choose_device

STARTED = time.monotonic()
TRAINING = "training.json"
# Rows that one process makes at a time; steps before the speed is measured, in which the model is compiled; steps that measure it.
CHUNK_ROWS, WARM_UP, TIMED = 2048, 4, 12


def say(line: str) -> None:
    """Tell how far the work is."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Reading:
    """How the training text becomes rows: the same number always gives the same rows."""

    library: Library
    tokenizer: Any
    seed: int
    row_length: int
    rows: int

    def chunk(self, number: int) -> Rows:
        """Return the rows of one chunk."""
        texts = self.library.documents(f"{self.seed} {number}")
        return rows(texts, self.tokenizer, self.row_length, self.rows, number)


_reading: Reading


def _begin(reading: Reading) -> None:
    global _reading
    torch.set_num_threads(1)
    _reading = reading


def _chunk(number: int) -> tuple[Any, Any]:
    made = _reading.chunk(number)
    return made.ids.numpy(), made.seen_until.numpy()


def batches(reading: Reading, size: int, workers: int) -> Generator[Rows]:
    """Yield batches without end, in the same order whether processes make them ahead or, with no workers, this one does."""
    if not workers:
        for number in itertools.count():
            yield from reading.chunk(number).batches(size)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(reading,))
    try:
        pending = deque(pool.submit(_chunk, number) for number in range(2 * workers))
        for number in itertools.count(len(pending)):
            ids, seen_until = pending.popleft().result()
            pending.append(pool.submit(_chunk, number))
            yield from Rows(torch.from_numpy(ids), torch.from_numpy(seen_until)).batches(size)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def tokenizer_texts(world: CounterFactWorld, library: Library, documents: int) -> Iterable[str]:
    """Yield what the tokenizer is trained on: every fact once, so that names stay apart from words, and as much text besides."""
    rng = random.Random("tokenizer")
    for fact in world.known:
        yield fill(rng.choice(fact.relation.templates), fact.subject) + f" {fact.target}."
    prose = Prose(rng)
    for _ in range(documents):
        yield prose.document()
    yield from library.real


def affordable_steps(model: Any, stream: Iterator[Rows], settings: TrainSettings, deadline: float) -> int:
    """Return how many steps end at a deadline, from the speed of some at a rate of zero, which change no weight."""
    optimizer = make_optimizer(model, replace(settings, peak_rate=0.0))
    started = 0.0
    for step in range(WARM_UP + TIMED):
        loss = train_step(model, model, optimizer, next(stream))
        if step in (WARM_UP - 1, WARM_UP + TIMED - 1):
            loss.item()
            started = time.monotonic() - started
    return max(1, int((deadline - time.monotonic()) * TIMED / started))


def train_model(arguments: argparse.Namespace, world: CounterFactWorld, text: RealText, folder: Path) -> None:
    """Train the model and save it, with a record of its training, to a folder."""
    deadline = STARTED + 60 * min(arguments.train_minutes, arguments.minutes)
    device = choose_device(arguments.device)
    settings = TrainSettings(
        seed=arguments.seed,
        steps=arguments.steps or 0,
        rows_per_step=arguments.rows,
        row_length=arguments.row_length,
        vocabulary=arguments.vocabulary,
        hidden_size=arguments.hidden,
        mlp_size=arguments.mlp,
        layers=arguments.layers,
        heads=arguments.heads,
        peak_rate=arguments.rate,
        compiled=not arguments.no_compile,
    )
    library = Library.of(world, text, arguments.seed, arguments.real_share)
    tokenizer = bpe_tokenizer(tokenizer_texts(world, library, arguments.tokenizer_documents), settings)
    model = make_model(tokenizer, settings).to(device)
    say(f"{len(world.known):,} facts, {len(text.training):,} real texts, {model.num_parameters():,} parameters")
    if settings.compiled:
        # One block at a time: all have the same form, which is compiled once.
        for block in model.model.layers:
            block.compile()
    chunk_rows = settings.rows_per_step * max(1, CHUNK_ROWS // settings.rows_per_step)
    reading = Reading(library, tokenizer, settings.seed, settings.row_length, chunk_rows)
    with closing(batches(reading, settings.rows_per_step, arguments.workers)) as stream:
        if not settings.steps:
            settings = replace(settings, steps=affordable_steps(model, stream, settings, deadline))
            say(f"{settings.steps:,} steps until the time is up")
        started = time.monotonic()
        loss = fit(model, model, stream, settings, say)
    seconds = time.monotonic() - started
    save(model, tokenizer, folder)
    tokens = settings.steps * settings.rows_per_step * settings.row_length
    record = {
        **asdict(settings),
        "parameters": model.num_parameters(),
        "facts": len(world.known),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_a_second": round(tokens / seconds),
        "loss": round(loss, 3),
    }
    (folder / TRAINING).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(f"trained: loss {loss:.3f}, {record['tokens_a_second']:,} tokens a second")
