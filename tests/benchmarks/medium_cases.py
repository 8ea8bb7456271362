"""The cases of the proof on facts that people wrote down: which there are, and how they are run, measured and saved."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from counterfact_world import CounterFactWorld, Library, RealText, held_out_texts, minimal_pairs
from medium_probe import editor_settings, knowledge, probe
from medium_training import STARTED, TRAINING, say
from patient import Patient, machine
from proof import Case, load, named, store

from reviver.demo.recipe.world import unmarked
from reviver.errors import NumericsError
from reviver.facts.fact import Fact, facts_to_jsonl

RECORD = "medium.json"
STAGES = ("train", "memit", "alphaedit", "long", "others", "seeds")
FILTERS = ("none", "revive")
# Tokens that a search for targets carries at once where memory is no question; no case begins with less time than this, in seconds.
GPU_TOKENS, LEAST_SECONDS = 2**18, 30.0
CORPUS_DOCUMENTS = 3000


@dataclass(frozen=True)
class Plan:
    """One case: an editor under a filter, with the first of a seed's facts."""

    editor: str
    filter: str
    edits: int
    seed: int = 0


def plans(stages: Sequence[str], edits: int, long: int, filters: Sequence[str] = FILTERS) -> list[Plan]:
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
        for name in filters
    ]


def sample(world: CounterFactWorld, seed: int, count: int) -> list[Fact]:
    """Return the first of a seed's facts: more of the same seed go on where fewer end."""
    return random.Random(seed).sample(world.edits, len(world.edits))[:count]


def write_corpus(path: Path, world: CounterFactWorld, text: RealText, arguments: argparse.Namespace) -> Path:
    """Write text like that of the training, for the second moments."""
    documents = Library.of(world, text, arguments.seed, arguments.real_share).documents("second moments")
    lines = (json.dumps({"text": unmarked(one)}) for one in itertools.islice(documents, CORPUS_DOCUMENTS))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_inputs(arguments: argparse.Namespace, world: CounterFactWorld, text: RealText) -> None:
    """Write the facts that can be edited and the held-out text, a document a line, for other benchmarks of the same model."""
    (arguments.out / "facts.jsonl").write_bytes(facts_to_jsonl(world.edits))
    lines = (" ".join(one.split("\n")) for one in held_out_texts(text, arguments.seed, arguments.texts))
    (arguments.out / "held-out.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def edit_model(arguments: argparse.Namespace, world: CounterFactWorld, text: RealText, model: Path) -> None:
    """Run the cases of the stages until the time is up, and save each as it goes."""
    todo = plans(arguments.stage.split("+"), arguments.edits, arguments.long, arguments.filters)
    todo = [plan for plan in todo if not arguments.editors or plan.editor in arguments.editors]
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(arguments, world, text, model, Path(name))
        for number, plan in enumerate(todo):
            if not runs.has(plan) and not runs.run(plan):
                say(f"out of time before: {', '.join(map(str, todo[number:]))}")
                break


def _edits(case: Mapping[str, Any]) -> int:
    """Return how many edits of a case were measured."""
    return int(case["points"][-1]["edits"]) if case["points"] else 0


class Runs:
    """A model made ready, and the record that its cases go to.

    Args:
        arguments: of the command line.
        world: the facts.
        text: what else it was trained on, with its held-out part.
        model: folder of the checkpoint.
        folder: an empty one, for a workspace.
    """

    def __init__(
        self, arguments: argparse.Namespace, world: CounterFactWorld, text: RealText, model: Path, folder: Path
    ) -> None:
        self._arguments = arguments
        self._world = world
        self._deadline = STARTED + 60 * arguments.minutes
        self._pairs = minimal_pairs(arguments.data, arguments.pairs_each)
        self._texts = held_out_texts(text, arguments.seed, arguments.texts)
        self._targets = named(arguments.target)
        self._workspace = named(arguments.given)
        self._file: Path = arguments.out / RECORD
        corpus = write_corpus(folder / "corpus.jsonl", world, text, arguments)
        given = {"apply.device": arguments.device, "moments.corpus": str(corpus), **self._workspace}
        given = {name: value for name, value in given.items() if value is not None}
        self._probed = self._probe(folder, model, given)
        layers = tuple(self._probed["layers"])
        self._patient = Patient(folder / "workspace", model, {**given, "model.layers": layers})
        self._record = self._begin(model)
        self._case: Case | None = None

    def _probe(self, folder: Path, model: Path, given: dict[str, object]) -> dict[str, Any]:
        """Return where and with which λ the model is edited: as told, or as `reviver doctor` advises."""
        layers, weight = self._arguments.blocks, self._arguments.weight
        probed: dict[str, Any] = {"fit": None, "layers": layers, "weight": weight}
        if not (layers and weight):
            probed = probe(folder, model, self._world.edits, given)
            probed |= {"layers": layers or probed["layers"], "weight": weight or probed["weight"]}
        say(f"blocks {probed['layers']}, λ = {probed['weight']:g}, fit: {probed['fit']}")
        return probed

    def _begin(self, model: Path) -> dict[str, Any]:
        """Return the record of earlier runs, with what is known of the model before it is edited."""
        record = load(self._file) | machine() | {"size": self._arguments.size, "probe": self._probed}
        if self._arguments.size == "reduced":
            record["note"] = "shows that the path works, not what the medium model does"
        facts = sample(self._world, 0, self._arguments.sample)
        record["model"] = json.loads((model / TRAINING).read_text(encoding="utf-8")) | {
            "fingerprint": self._model,
            "knows": knowledge(self._patient, facts),
        }
        self._probed["editor_settings"] = editor_settings(self._patient, facts)
        say(f"the base knows {record['model']['knows']}; {self._probed['editor_settings']}")
        store(self._file, record)
        return record

    @property
    def _model(self) -> str:
        """What tells the model from others."""
        return str(self._patient.preparation.pin.fingerprint)

    def _given(self, editor: str) -> dict[str, Any]:
        """Return the settings that were given for an editor."""
        settings = (one.replace("=", ".", 1).split(".", 2) for one in self._arguments.setting)
        return {name: json.loads(value) for owner, name, value in settings if owner == editor}

    def _rank(self, plan: Plan) -> int | None:
        return None if plan.filter == "none" else self._arguments.rank or self._patient.preset.rank

    def _key(self, plan: Plan) -> str:
        layers = ",".join(map(str, self._probed["layers"]))
        key = f"{plan.editor} {plan.filter} k={self._rank(plan)} seed={plan.seed} edits={plan.edits}"
        key += f" round={self._arguments.round_size} λ={self._probed['weight']:g} blocks={layers}"
        return key + "".join(f" {name}={value}" for name, value in self._told(plan).items())

    def _told(self, plan: Plan) -> dict[str, Any]:
        unsaid = {"unsaid": self._arguments.unsaid} if self._arguments.unsaid else {}
        return {**self._given(plan.editor), **self._targets, **self._workspace, **unsaid}

    def has(self, plan: Plan) -> bool:
        """Return whether a case is in the record whole."""
        case = self._record["cases"].get(self._key(plan), {})
        return bool(case.get("complete")) and case["model"] == self._model

    def run(self, plan: Plan) -> bool:
        """Run a case and save what is measured each time that everything was; returns False where there is no time to begin."""
        if self._deadline - time.monotonic() < min(LEAST_SECONDS, 6 * self._arguments.minutes):
            return False
        facts = sample(self._world, plan.seed, plan.edits)
        if self._case is None or self._case.facts != facts:
            self._case = Case(self._patient, facts, self._pairs, self._texts, sample=self._arguments.sample)
        try:
            self._run(self._case, plan)
        except NumericsError as error:
            # What was measured before is saved; a model that is gone so far has nothing left to measure.
            say(f"{self._key(plan)}: {error.message}")
            begun = {**asdict(plan), "settings": self._told(plan), "model": self._model, "points": []}
            self._record["cases"].setdefault(self._key(plan), begun).update(complete=True, ended=error.message)
            store(self._file, self._record)
        return True

    def _run(self, case: Case, plan: Plan) -> None:
        size, parts = self._arguments.round_size, self._arguments.points
        rounds = -(-len(case.facts) // size)
        options: dict[str, Any] = {
            "rank": self._rank(plan),
            "weight": self._probed["weight"],
            "editor_settings": self._probed["editor_settings"].get(plan.editor, {}) | self._given(plan.editor),
            "targets": self._targets,
        }
        earlier = self._record["cases"].get(self._key(plan))

        def keep(measured: list[dict[str, Any]]) -> None:
            if not earlier or earlier["model"] != self._model or _edits(earlier) <= measured[-1]["edits"]:
                self._keep(case, plan, options, measured)

        budget = {"token_budget": GPU_TOKENS} if case.patient.model.device.type == "cuda" else {}
        case.run(
            {-(-rounds * part // parts) for part in range(1, parts + 1)},
            {
                "editor": plan.editor,
                "filter_name": plan.filter,
                "round_size": size,
                **options,
                "targets": {**self._targets, **budget},
            },
            drift_every=max(1, rounds // 20),
            deadline=self._deadline,
            save=keep,
        )

    def _keep(self, case: Case, plan: Plan, options: dict[str, Any], measured: list[dict[str, Any]]) -> None:
        key, end = self._key(plan), measured[-1]
        self._record["cases"][key] = {
            **asdict(plan),
            **options,
            "settings": self._told(plan),
            "model": self._model,
            "complete": end["edits"] == len(case.facts),
            "base": case.general,
            "points": measured,
        }
        store(self._file, self._record)
        shown = {name: round(value, 3) for name, value in end.items() if isinstance(value, float)}
        say(f"{key}: {end['edits']} {shown}")
