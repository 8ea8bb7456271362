"""The proof at length: model × editor × filter × seed, round after round, with what it costs measured along the way.

`python tests/benchmarks/proof.py --out FILE` edits the packaged model with 1,000 facts in rounds of 50, without a filter and
under REVIVE, for three seeds, and measures at several points over *all* facts edited so far: exact efficacy, ES, paraphrases,
neighbours; efficacy by the age of the edit; general ability as held-out perplexity and minimal pairs; drift at a k that does
not depend on the filter; norms. Every finished case is saved at once, and a case that is in the file is not run again. `--figure
FILE` draws what is in the file as SVG, and `--table` prints it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from figure import draw_figure
from patient import FACTS, MODEL, ROOT, Patient, draw, held_out_texts, machine

from reviver.editing.layer import EditedLayer
from reviver.editing.rounds import RoundRecord
from reviver.evaluation.ages import in_blocks
from reviver.evaluation.counterfact import counterfact_scores, measure_facts, neighbors_said
from reviver.evaluation.perplexity import perplexity
from reviver.evaluation.scores import row_nlls
from reviver.facts.fact import Fact
from reviver.spectral.basis import compute_basis
from reviver.spectral.drift import norm_growth, subspace_similarity

DRIFT_RANK = 8
SIMILARITY_LIMIT = 0.5
GROWTH_LIMIT = 3.0
ABILITY_LIMIT = 0.95
# Below it, what is above chance is mostly the draw of the pairs.
PAIRS_LEAST = 0.65
AGES = 4
SCORES = ("efficacy", "es", "paraphrase", "ps", "neighbors_kept", "ns", "s")


class OutOfTimeError(Exception):
    """A case has reached its deadline."""


class Case:
    """One editor under one filter with one seed's facts.

    Args:
        patient: the prepared base.
        facts: in the order in which they are edited.
        pairs: good and bad sentences.
        texts: held-out prose.
        sample: of how many facts, at most, a measurement is made: as many of each age, drawn by seed.
    """

    def __init__(
        self,
        patient: Patient,
        facts: Sequence[Fact],
        pairs: Sequence[tuple[str, str]],
        texts: Sequence[str],
        *,
        sample: int | None = None,
    ) -> None:
        self.patient = patient
        self.facts = facts
        self.pairs = pairs
        self.texts = texts
        self.sample = sample
        patient.rewind()
        started = time.monotonic()
        self.before = neighbors_said(patient.model, facts)
        self.general = self._general()
        # What a measurement takes, so that the last one before a deadline fits in.
        self._seconds = time.monotonic() - started
        self.bases = {
            name: patient.preparation.basis(name, DRIFT_RANK, patient.model.device)
            for name in patient.preparation.pin.edited
        }

    def _general(self) -> dict[str, float]:
        model = self.patient.model
        rows = [model.tokenizer(text)["input_ids"] for pair in self.pairs for text in pair]
        nlls = row_nlls(model, rows)
        right = sum(good < bad for good, bad in zip(nlls[::2], nlls[1::2], strict=True))
        return {"perplexity": perplexity(model, self.texts), "pairs": right / len(self.pairs)}

    def run(
        self,
        points: set[int],
        options: Mapping[str, Any],
        *,
        drift_every: int = 1,
        deadline: float = math.inf,
        save: Callable[[list[dict[str, Any]]], None] = lambda measured: None,
    ) -> list[dict[str, Any]]:
        """Edit round by round and return what was measured.

        Args:
            points: the numbers of rounds at which everything is measured.
            options: of `Patient.edit`.
            drift_every: how many rounds lie between two measurements of drift alone.
            deadline: of `time.monotonic`; where the next round would not end before it, everything is measured a last time.
            save: given all that is measured, each time that everything was.
        """
        measured: list[dict[str, Any]] = []
        started = time.monotonic()
        done = 0

        def after(number: int, record: RoundRecord, layers: list[EditedLayer]) -> None:
            nonlocal done
            done += len(record.facts)
            now = time.monotonic()
            late = now + (now - started) / number + 1.5 * self._seconds > deadline
            whole = late or number in points
            if not whole and number % drift_every:
                return
            point: dict[str, Any] = {"edits": done, "loss": record.mean_loss, **self._drift(layers)}
            if whole:
                point |= self._facts(done) | self._general()
                self._seconds = max(self._seconds, time.monotonic() - now)
            point["seconds"] = round(time.monotonic() - started, 1)
            measured.append(point)
            if whole:
                save(measured)
            if late and done < len(self.facts):
                raise OutOfTimeError

        with suppress(OutOfTimeError):
            self.patient.edit(self.facts, after_round=after, **options)
        return measured

    def _drift(self, layers: Sequence[EditedLayer]) -> dict[str, float]:
        """Return the worst layer's drift: similarity of the leading subspaces, and growth of the norm."""
        similarity, growth = [], []
        for edited in layers:
            base = self.bases[edited.name]
            now = compute_basis(edited.live_DE, DRIFT_RANK, spectrum=False)
            similarity.append(min(subspace_similarity(base, now, DRIFT_RANK)))
            growth.append(norm_growth(base, now))
        return {"similarity": min(similarity), "growth": max(growth)}

    def _facts(self, done: int) -> dict[str, Any]:
        chosen = self._measured(done)
        measures = measure_facts(self.patient.model, [self.facts[index] for index in chosen])
        scores = counterfact_scores(measures, [self.before[index] for index in chosen])
        return {
            **{name: getattr(scores, name) for name in SCORES},
            "by_age": [group.efficacy for group in in_blocks(measures, AGES)],
        }

    def _measured(self, done: int) -> list[int]:
        """Return the numbers of the facts to measure, ascending: all, or as many of each age as the sample allows."""
        if self.sample is None or done <= self.sample:
            return list(range(done))
        rng = random.Random(done)
        ages = itertools.pairwise(round(done * part / AGES) for part in range(AGES + 1))
        return [index for age in ages for index in sorted(rng.sample(range(*age), self.sample // AGES))]


def ability(point: Mapping[str, Any], base: Mapping[str, float]) -> float:
    """Return the share of general ability that is kept: the mean of both measures, each against the base's and against chance.

    Minimal pairs count above chance (0.5); perplexity as the ratio of the base's to the version's, alone where the base tells
    hardly more pairs apart than chance does.
    """
    kept = base["perplexity"] / float(point["perplexity"]) if math.isfinite(point["perplexity"]) else 0.0
    if base["pairs"] <= PAIRS_LEAST:
        return kept
    return (max(0.0, float(point["pairs"] - 0.5) / (base["pairs"] - 0.5)) + kept) / 2


def crossings(case: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return after how many edits the similarity fell below its limit, a norm outgrew its, and ability fell below its."""
    similar = (point["edits"] for point in case["points"] if point["similarity"] < SIMILARITY_LIMIT)
    grown = (point["edits"] for point in case["points"] if point["growth"] > GROWTH_LIMIT)
    whole = (point for point in case["points"] if "pairs" in point)
    fallen = (point["edits"] for point in whole if ability(point, case["base"]) < ABILITY_LIMIT)
    return next(similar, None), next(grown, None), next(fallen, None)


def named(options: Sequence[str]) -> dict[str, Any]:
    """Return what options of the form NAME=JSON say."""
    return {name: json.loads(value) for name, _, value in (one.partition("=") for one in options)}


def load(path: Path) -> dict[str, Any]:
    """Return what earlier runs have measured."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**machine(), "cases": {}}


def store(path: Path, record: Mapping[str, Any]) -> None:
    """Save what was measured, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def report(record: Mapping[str, Any]) -> str:
    """Return the table: the end of every case, mean and spread over its seeds."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    lines = []
    for name, case in record["cases"].items():
        if not case["points"]:
            lines.append(f"{name}: {case['ended']}")
            continue
        rank = "" if case.get("rank") is None else f" k={case['rank']}"
        given = [*case.get("settings", {}).items(), *([("λ", case["weight"])] if "weight" in case else [])]
        told = "".join(
            f" {name}={value:g}" if isinstance(value, float) else f" {name}={value}" for name, value in given
        )
        edits = case["points"][-1]["edits"]
        groups.setdefault((case["editor"] + told, case["filter"] + rank, edits), []).append(case)
    for (editor, name, edits), cases in groups.items():
        ends = [case["points"][-1] for case in cases]
        figures = {key: [end.get(key) for end in ends] for key in SCORES}
        figures["first quarter"] = [end["by_age"][0] for end in ends]
        figures["ability"] = [ability(case["points"][-1], case["base"]) for case in cases]
        figures["perplexity"] = [end["perplexity"] for end in ends]
        figures["growth"] = [end["growth"] for end in ends]
        # A share of nothing is missing: the base may know no neighbour, and earlier records have fewer shares.
        known = {key: [value for value in values if value is not None] for key, values in figures.items()}
        shown = "  ".join(
            f"{key} {statistics.mean(values):.3g} ({min(values):.3g}-{max(values):.3g})"
            for key, values in known.items()
            if values
        )
        lines.append(
            f"{editor:17} {name:12} {edits} edits, {len(cases)} seeds: {shown}  "
            f"similarity, growth, ability cross at {[crossings(case) for case in cases]}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cases that are missing, and show all there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON with all cases; gone on with where it exists")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--facts", type=Path, default=FACTS)
    parser.add_argument("--editors", nargs="*", default=["memit", "rect", "alphaedit", "nse", "prune", "ultraedit"])
    parser.add_argument("--filters", nargs="*", default=["none", "revive"])
    parser.add_argument("--rank", type=int, help="protected rank instead of the preset's")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--round-size", type=int, default=50)
    parser.add_argument("--points", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--sample", type=int, default=400, help="facts at most of one measurement, as many of each age")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of the editor")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--figure", type=Path, help="draw what is in the file")
    parser.add_argument("--table", action="store_true", help="print what is in the file and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments)
    record = load(arguments.out)
    print(report(record))
    if arguments.figure:
        arguments.figure.write_text(draw_figure(record, ability), encoding="utf-8")


def run(arguments: argparse.Namespace) -> None:
    """Run every case that the file does not hold yet, seeds outermost, and save after each."""
    given = named(arguments.setting)
    rounds = -(-arguments.edits // arguments.round_size)
    points = {math.ceil(rounds * part / arguments.points) for part in range(1, arguments.points + 1)}
    lines = (ROOT / "edits" / "minimal-pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(pair["good"], pair["bad"]) for pair in map(json.loads, lines[::2])]
    texts = held_out_texts()[::2]
    with tempfile.TemporaryDirectory() as folder:
        patient = Patient(Path(folder), arguments.model, {"apply.device": arguments.device})
        model = patient.preparation.pin.fingerprint
        for seed in arguments.seeds:
            facts = draw(arguments.facts, arguments.edits, seed)
            case: Case | None = None
            for editor in arguments.editors:
                for name in arguments.filters:
                    rank = None if name == "none" else arguments.rank or patient.preset.rank
                    key = f"{editor} {name} k={rank} seed={seed} edits={arguments.edits} round={arguments.round_size}"
                    key = " ".join((key, f"model={model[:12]}", *arguments.setting))
                    if key in load(arguments.out)["cases"]:
                        continue
                    case = case or Case(patient, facts, pairs, texts, sample=arguments.sample)
                    options = {"editor": editor, "filter_name": name, "rank": rank, "editor_settings": given}
                    measured = case.run(points, {**options, "round_size": arguments.round_size})
                    record = load(arguments.out)
                    record["cases"][key] = {
                        "editor": editor,
                        "filter": name,
                        "rank": rank,
                        "seed": seed,
                        "settings": given,
                        "threads": torch.get_num_threads(),
                        "base": case.general,
                        "points": measured,
                    }
                    store(arguments.out, record)
                    end = measured[-1]
                    print(key, {k: round(v, 3) for k, v in end.items() if isinstance(v, float)}, flush=True)


if __name__ == "__main__":
    main()
