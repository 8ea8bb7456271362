"""The measures against a second computation: the raw records, a float64 model, a loop over prompts, plain calls of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from second_reader import Reader, records_of

from reviver.editing.model import EditableModel
from reviver.evaluation.counterfact import counterfact_scores, measure_facts, neighbors_said
from reviver.evaluation.pair_file import read_pairs
from reviver.evaluation.pairs import pair_scores
from reviver.evaluation.perplexity import perplexity
from reviver.evaluation.zsre import zsre_scores
from reviver.facts.fact import Fact
from reviver.facts.reader import read_facts

COUNT = 20
TOLERANCE = 2e-5


def _facts(name: str, records: list[dict[str, Any]], folder: Path) -> tuple[Fact, ...]:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    facts = read_facts(path).facts
    assert len(facts) == len(records)
    return facts


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def test_counterfact(stories: EditableModel, reader: Reader, tmp_path: Path) -> None:
    records = records_of("counterfact-full.jsonl", COUNT)
    facts = _facts("counterfact.jsonl", records, tmp_path)
    measures = measure_facts(stories, facts)
    scores = counterfact_scores(measures, neighbors_said(stories, facts))

    wins: dict[str, list[bool]] = {"rewrite": [], "paraphrase": [], "neighbor": []}
    margins: dict[str, list[float]] = {"rewrite": [], "paraphrase": [], "neighbor": []}
    exact: dict[str, list[bool]] = {"rewrite": [], "paraphrase": [], "neighbor": []}
    for record, measure in zip(records, measures, strict=True):
        rewrite = record["requested_rewrite"]
        new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
        prompts = {
            "rewrite": [rewrite["prompt"].format(rewrite["subject"])],
            "paraphrase": record["paraphrase_prompts"],
            "neighbor": record["neighborhood_prompts"],
        }
        ours = {"rewrite": (measure.rewrite,), "paraphrase": measure.paraphrases, "neighbor": measure.neighbors}
        for kind, texts in prompts.items():
            assert len(texts) == len(ours[kind])
            for text, compared in zip(texts, ours[kind], strict=True):
                wanted, other = (true, new) if kind == "neighbor" else (new, true)
                nll, said = reader.target(text, wanted)
                other_nll, _ = reader.target(text, other)
                assert compared.wanted.nll == pytest.approx(nll, abs=TOLERANCE)
                assert compared.other is not None
                assert compared.other.nll == pytest.approx(other_nll, abs=TOLERANCE)
                assert compared.wanted.tokens == len(said) and compared.wanted.said == sum(said)
                wins[kind].append(nll < other_nll)
                margins[kind].append(math.exp(-nll) - math.exp(-other_nll))
                exact[kind].append(all(said))
    es, ps, ns = (_mean(wins[kind]) for kind in wins)
    assert (scores.es, scores.ps, scores.ns) == (es, ps, ns)
    assert scores.s == pytest.approx(3 / (1 / es + 1 / ps + 1 / ns))
    assert scores.efficacy == _mean(exact["rewrite"])
    assert scores.paraphrase == _mean(exact["paraphrase"])
    assert scores.neighbor_accuracy == _mean(exact["neighbor"])
    # The model is its own base here: all that it answers rightly, it keeps.
    assert scores.neighbors_known == sum(exact["neighbor"])
    assert scores.neighbors_kept == (1.0 if scores.neighbors_known else None)
    for kind, value in zip(
        margins,
        (scores.efficacy_magnitude, scores.paraphrase_magnitude, scores.neighbor_magnitude),
        strict=True,
    ):
        assert value == pytest.approx(_mean(margins[kind]), abs=TOLERANCE)
    assert (scores.facts, scores.paraphrases, scores.neighbors) == (20, 40, 200)


def test_zsre(stories: EditableModel, reader: Reader, tmp_path: Path) -> None:
    records = records_of("zsre.jsonl", COUNT)
    scores = zsre_scores(stories, _facts("zsre.jsonl", records, tmp_path))
    rewrite, rephrase, locality = [], [], []
    for record in records:
        # Two of these targets bring the space before them along, as most don't.
        target = record["target_new"].strip()
        rewrite.append(_mean(reader.target(record["prompt"], target)[1]))
        rephrase.append(_mean(reader.target(record["rephrase_prompt"], target)[1]))
        for probes in record["locality"].values():
            for probe in probes:
                answer = probe["ground_truth"]
                while isinstance(answer, list):
                    answer = answer[0]
                locality.append(_mean(reader.target(probe["prompt"], answer)[1]))
    assert scores.rewrite == pytest.approx(_mean(rewrite), abs=1e-12)
    assert scores.rephrase == pytest.approx(_mean(rephrase), abs=1e-12)
    assert scores.locality == pytest.approx(_mean(locality), abs=1e-12)
    assert (scores.facts, scores.rephrases, scores.localities) == (20, 20, len(locality))
    assert any(0 < share < 1 for share in rewrite + rephrase + locality), "shares of tokens, not whole answers"


def test_minimal_pairs(stories: EditableModel, reader: Reader, tmp_path: Path) -> None:
    # 150 pairs a paradigm: these are of two, so that the shares by paradigm differ from the share over all.
    records = records_of("blimp.jsonl", 158)
    records = [*records[:12], *records[150:]]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    scores = pair_scores(stories, read_pairs(path))
    flags: dict[str, list[bool]] = {}
    for record in records:
        good, bad = (reader.nll(reader.tokenizer(record[name])["input_ids"]) for name in ("good", "bad"))
        flags.setdefault(record["paradigm"], []).append(good < bad)
    assert len(flags) == 2
    assert scores.paradigms == {name: _mean(own) for name, own in flags.items()}
    assert scores.accuracy == _mean([flag for own in flags.values() for flag in own])
    assert reader.tokenizer("x")["input_ids"][0] == reader.tokenizer.bos_token_id, "the first word counts"


def test_perplexity(stories: EditableModel, reader: Reader) -> None:
    texts = [record["text"] for record in records_of("tinystories.jsonl", 3)]
    length = 100
    total, count = 0.0, 0
    for text in texts:
        ids = reader.tokenizer(text)["input_ids"]
        for start in range(0, len(ids), length):
            window = ids[start : start + length]
            if len(window) > 1:
                total += reader.nll(window)
                count += len(window) - 1
    assert perplexity(stories, texts, length=length) == pytest.approx(math.exp(total / count), rel=1e-5)
