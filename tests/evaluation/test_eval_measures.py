"""The measures on inputs whose result is known beforehand: shares, ages, entropies, drift, and the harness of others."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import open_tiny

from reviver.editing.model import EditableModel
from reviver.editing.tokens import tokenize_rows
from reviver.errors import EvaluationError, FactsError, NumericsError, ResourceError
from reviver.evaluation.ages import by_version, in_blocks
from reviver.evaluation.counterfact import (
    Compared,
    CounterFactScores,
    FactMeasure,
    counterfact_scores,
    measure_facts,
    neighbors_said,
)
from reviver.evaluation.drift import drift_basis, drift_scores, tensor_drift
from reviver.evaluation.fluency import fluency_prompts, fluency_scores, ngram_entropy
from reviver.evaluation.harness import run_tasks
from reviver.evaluation.outcomes import observe, summarize
from reviver.evaluation.pair_file import MinimalPair, read_pairs
from reviver.evaluation.pairs import pair_scores
from reviver.evaluation.perplexity import row_perplexity, written_rows
from reviver.evaluation.scores import Score, answers, score_continuations
from reviver.facts.fact import Fact, Probe


def _compared(wanted: float, other: float | None, *, exact: bool = False) -> Compared:
    return Compared(
        wanted=Score(nll=wanted, said=2 if exact else 1, tokens=2),
        other=None if other is None else Score(nll=other, said=0, tokens=1),
    )


def _measure(
    rewrite: Compared, paraphrases: tuple[Compared, ...] = (), neighbors: tuple[Compared, ...] = ()
) -> FactMeasure:
    return FactMeasure(rewrite=rewrite, paraphrases=paraphrases, neighbors=neighbors)


def test_shares_by_hand() -> None:
    measures = [
        _measure(
            _compared(1, 2, exact=True),
            (_compared(1, 2), _compared(3, 2), _compared(1, 4, exact=True)),
            (_compared(1, 2, exact=True), _compared(2, 1), _compared(1, 3)),
        ),
        _measure(_compared(2, 2), (), (_compared(1, 5, exact=True),)),
        # Names no true target: it counts for efficacy alone.
        _measure(_compared(0.5, None, exact=True)),
    ]
    scores = counterfact_scores(measures, [(True, False, True), (True,), ()])
    assert scores.efficacy == 2 / 3
    assert scores.es == 1 / 2, "as probable is not more probable"
    assert (scores.paraphrase, scores.ps) == (1 / 3, 2 / 3)
    assert scores.neighbors_kept == 2 / 3, "of the three that the base knows"
    assert (scores.ns, scores.neighbor_accuracy) == (3 / 4, 2 / 4)
    assert scores.s == pytest.approx(3 / (2 + 3 / 2 + 4 / 3))
    assert scores.efficacy_magnitude == pytest.approx((math.exp(-1) - math.exp(-2)) / 2)
    assert (scores.facts, scores.facts_compared, scores.paraphrases, scores.neighbors) == (3, 2, 3, 4)
    assert scores.neighbors_known == 3


def test_neighbours_are_never_told_without_es() -> None:
    scores = counterfact_scores([_measure(_compared(1, None), (), (_compared(1, 2),))], [(True,)])
    assert scores.es is None and scores.ns is None and scores.neighbor_magnitude is None and scores.s is None
    assert scores.neighbors_kept == 0.0, "which counts no edit that failed as a success"


def test_a_share_of_zero_makes_s_zero() -> None:
    scores = counterfact_scores([_measure(_compared(2, 1), (_compared(1, 2),), (_compared(1, 2),))], [(False,)])
    assert (scores.es, scores.s, scores.neighbors_kept) == (0.0, 0.0, None)


def test_nothing_at_all() -> None:
    scores = counterfact_scores([], [])
    assert scores == CounterFactScores(
        **{name: None for name in CounterFactScores.__slots__}
        | dict.fromkeys(  # type: ignore[arg-type]
            ("facts", "facts_compared", "paraphrases", "neighbors", "neighbors_known"), 0
        )
    )


def test_targets_that_are_the_same_text_are_not_compared(tiny: EditableModel) -> None:
    same = Fact(id="a", prompt="{} is in", subject="Tessel", target_new="Orvania", target_true="Orvania")
    neighbor = Fact(
        id="b", prompt="{} is in", subject="Calmar", target_new="Orvania", target_true="Brundia",
        neighborhood_prompts=(Probe(prompt="Tessel is in", answer="Orvania"), Probe(prompt="The Ilva is in")),
    )  # fmt: skip
    unknown = Fact(
        id="c", prompt="{} is in", subject="Ilva", target_new="Orvania",
        neighborhood_prompts=(Probe(prompt="Tessel is in"),),
    )  # fmt: skip
    measures = measure_facts(tiny, [same, neighbor, unknown])
    assert measures[0].rewrite.other is None
    assert [one.other is None for one in measures[1].neighbors] == [True, False]
    assert measures[2].neighbors == (), "a neighbour without a right answer measures nothing"
    assert [len(said) for said in neighbors_said(tiny, [same, neighbor, unknown])] == [0, 2, 0]


@given(st.lists(st.sampled_from(["v1", "v2", "v3"]), max_size=40).map(sorted), st.integers(1, 12))
def test_every_fact_is_in_one_group_of_its_age(versions: list[str], count: int) -> None:
    measures = [_measure(_compared(1, 2, exact=index % 3 == 0)) for index in range(len(versions))]
    groups = by_version(versions, measures)
    assert [group.name for group in groups] == list(dict.fromkeys(versions))
    assert [group.facts for group in groups] == list(Counter(versions).values())
    for found in (groups, in_blocks(measures, count)):
        places = [place for group in found for place in range(group.first, group.last + 1)]
        assert places == list(range(1, len(versions) + 1))
        said = [measures[place - 1].rewrite.wanted.exact for place in places]
        assert sum(group.efficacy * group.facts for group in found) == pytest.approx(sum(said))
    sizes = [group.facts for group in in_blocks(measures, count)]
    assert not sizes or (max(sizes) - min(sizes) <= 1 and len(sizes) == min(count, len(versions)))


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4))
def test_entropy_of_ngrams(words: list[str], n: int) -> None:
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    shares = [grams.count(gram) / len(grams) for gram in set(grams)]
    assert ngram_entropy(words, n) == pytest.approx(-sum(share * math.log2(share) for share in shares), abs=1e-9)


def test_entropies_that_are_known() -> None:
    assert ngram_entropy(["the"] * 50, 2) == 0.0
    assert ngram_entropy([], 3) == 0.0
    assert ngram_entropy([str(number) for number in range(65)], 2) == pytest.approx(6.0)


def test_fluency_is_seeded_and_falls_where_a_model_repeats_itself(tiny: EditableModel) -> None:
    facts = [Fact(id=str(n), prompt="{} is", subject=f"Person {n % 150}", target_new="x") for n in range(160)]
    prompts = fluency_prompts(facts, seed=3)
    assert len(prompts) == len(set(prompts)) == 100 and prompts == fluency_prompts(facts, seed=3)
    assert prompts != fluency_prompts(facts, seed=4)
    few = prompts[:6]
    scores = fluency_scores(tiny, few, seed=1, tokens=30)
    assert scores == fluency_scores(tiny, few, seed=1, tokens=30)
    assert scores != fluency_scores(tiny, few, seed=2, tokens=30)
    assert scores.fluency == pytest.approx((2 / 3 * scores.bigram_entropy + 4 / 3 * scores.trigram_entropy) / 2)
    assert scores.texts == 6
    head = tiny.network.get_output_embeddings().weight
    kept = head.clone()
    try:
        with torch.no_grad():
            head.zero_()
            # Every state is answered by one token, whatever was read.
            head[40] = 100.0
            head[41] = -100.0
        assert fluency_scores(tiny, few, seed=1, tokens=30).fluency < scores.fluency / 2
        with torch.no_grad():
            head.fill_(float("nan"))
        with pytest.raises(NumericsError):
            fluency_scores(tiny, few, seed=1, tokens=30)
    finally:
        with torch.no_grad():
            head.copy_(kept)


def test_a_model_s_own_text_is_the_same_each_time(tiny: EditableModel) -> None:
    rows = written_rows(tiny)
    assert rows == written_rows(tiny) and len(rows) == 32
    assert 1 < row_perplexity(tiny, rows) < 320, "between certainty and ignorance of 320 tokens"


def test_drift_against_numpy() -> None:
    random = np.random.default_rng(0)
    base = random.standard_normal((24, 40)) * np.linspace(3, 0.1, 40)
    edited = base + 0.3 * random.standard_normal((24, 40))
    drift = tensor_drift("w", drift_basis(torch.tensor(base)), drift_basis(torch.tensor(edited)))
    u, _, v = np.linalg.svd(base)
    u_new, _, v_new = np.linalg.svd(edited)
    k = 16
    assert drift.rank == k
    assert drift.subspace_left == pytest.approx(np.linalg.norm(u[:, :k].T @ u_new[:, :k]) ** 2 / k)
    assert drift.subspace_right == pytest.approx(np.linalg.norm(v[:k] @ v_new[:k].T) ** 2 / k)
    assert drift.vectors_left == pytest.approx(np.abs((u[:, :k] * u_new[:, :k]).sum(0)))
    assert drift.vectors_right == pytest.approx(np.abs((v[:k] * v_new[:k]).sum(1)))
    assert drift.norm_growth == pytest.approx(np.linalg.norm(edited) / np.linalg.norm(base))
    same = tensor_drift("w", drift_basis(torch.tensor(base)), drift_basis(torch.tensor(base)))
    both = drift_scores([drift, same])
    assert both.subspace_similarity == pytest.approx((drift.subspace_left + drift.subspace_right + 2) / 4)
    assert both.norm_growth == max(drift.norm_growth, 1.0)


def test_pairs_in_both_spellings(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"good": "She sleeps.", "bad": "She sleep.", "paradigm": "agreement"}\n\n'
        '{"sentence_good": "A b.", "sentence_bad": "B a.", "UID": "order", "field": "syntax"}\n'
        '{"good": "X.", "bad": "Y."}\n',
        encoding="utf-8",
    )
    assert read_pairs(path) == (
        MinimalPair(good="She sleeps.", bad="She sleep.", paradigm="agreement", line=1),
        MinimalPair(good="A b.", bad="B a.", paradigm="order", line=3),
        MinimalPair(good="X.", bad="Y.", paradigm="all", line=4),
    )


def test_all_that_is_wrong_with_pairs_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b'{"good": "a", "bad": "b"}\n{"good": "a"}\nnot json\n{"good": "a", "bad": "a"}\n[1]\n'
        b'{"good": "\\u001b[31m", "bad": "b"}\n{"good": "\xff", "bad": "b"}\n{"good": 3, "bad": "b"}\n'
        b'{"good": "a", "bad": "b", "paradigm": 7}\n{"good": "a", "good": "c", "bad": "b"}\n'
    )
    with pytest.raises(EvaluationError) as caught:
        read_pairs(path)
    problems = caught.value.facts["problems"]
    assert [problem.line for problem in problems] == [2, 3, 4, 5, 6, 7, 8, 9, 10]  # type: ignore[attr-defined]
    assert "9 problems" in caught.value.message
    for text in ("", "\n\n"):
        path.write_text(text)
        with pytest.raises(EvaluationError, match="holds no pairs"):
            read_pairs(path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pair_beyond_the_window(family: str, tmp_path: Path) -> None:
    """GPT-2 has no place for what lies beyond it, whichever sentence of the two that is."""
    model = open_tiny(tmp_path, family)
    long, short = "a " * 200, "b"
    for good, bad in ((long, short), (short, long)):
        pair = MinimalPair(good=good, bad=bad, paradigm="p", line=7)
        with pytest.raises(EvaluationError, match="line 7"):
            pair_scores(model, [pair])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_an_answer_fits_into_the_window(family: str, tmp_path: Path) -> None:
    """After a prompt that all but fills it, it is shorter; the others' are what they are alone."""
    model = open_tiny(tmp_path, family)
    word = " Calmar"
    prompts = ["The", *("Ilva" + word * count for count in range(100, 140))]
    lengths = [len(ids) for ids in model.tokenizer(prompts)["input_ids"]]
    fitting = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= model.window]
    assert {model.window - 7, model.window - 1, model.window} < set(lengths)
    written = answers(model, fitting, tokens=6)
    assert written[0] == answers(model, fitting[:1], tokens=6)[0]
    full = tokenize_rows(model.tokenizer, fitting[-1:], [""], window=model.window)[0].ids
    assert len(full) == model.window
    with torch.no_grad():
        token = int(model.network(torch.tensor([full])).logits[0, -1].argmax())
    assert written[-1] == model.tokenizer.decode([token], skip_special_tokens=True).strip()
    with pytest.raises(FactsError, match="window"):
        answers(model, prompts, tokens=6)
    with pytest.raises(FactsError, match="window"):
        fluency_scores(model, prompts, seed=0, tokens=6)


def test_a_model_without_probabilities_is_not_scored(tiny: EditableModel) -> None:
    head = tiny.network.get_output_embeddings().weight
    kept = head.clone()
    try:
        with torch.no_grad():
            head[9] = float("nan")
        with pytest.raises(NumericsError, match="NaN"):
            score_continuations(tiny, [("The capital of Orvania is", "Calmar")])
        with pytest.raises(NumericsError, match="NaN"):
            row_perplexity(tiny, [[5, 6, 7]])
    finally:
        with torch.no_grad():
            head.copy_(kept)


def test_apply_and_eval_compare_the_same_facts(tiny: EditableModel) -> None:
    """A fact whose new target is the true one says nothing about which of the two is more probable."""
    facts = [
        Fact(id="a", prompt="{} is in", subject="Tessel", target_new="Orvania", target_true="Orvania"),
        Fact(id="b", prompt="{} is in", subject="Calmar", target_new="Orvania", target_true="Brundia"),
        Fact(id="c", prompt="{} is in", subject="Calmar", target_new="Brundia", target_true="Orvania"),
        Fact(id="d", prompt="{} is in", subject="Ilva", target_new="Orvania"),
    ]
    seen = observe(tiny, facts)
    scores = counterfact_scores(measure_facts(tiny, facts), [()] * 4)
    assert summarize(seen, seen, [()] * 4).success == scores.es == 0.5
    assert summarize(seen[:1], seen[:1], [()]).success is None


HARNESS = """
def simple_evaluate(model, tasks, limit, **options):
    if "unknown" in tasks:
        raise KeyError("no task unknown")
    count = sum(parameter.numel() for parameter in model.network.parameters())
    found = {"alias": tasks[0], "acc,none": 0.25, "acc_stderr,none": 0.01, "f1,strict": count, "skipped": float("nan")}
    return {"results": {name: found for name in tasks}, "limit": limit}
"""
HUGGINGFACE = """
class HFLM:
    def __init__(self, pretrained, tokenizer, batch_size):
        assert tokenizer("x")["input_ids"]
        self.network = pretrained
"""


def test_tasks_of_the_harness(tiny: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lm_eval" / "models").mkdir(parents=True)
    (tmp_path / "lm_eval" / "__init__.py").write_text(HARNESS)
    (tmp_path / "lm_eval" / "models" / "__init__.py").write_text("")
    (tmp_path / "lm_eval" / "models" / "huggingface.py").write_text(HUGGINGFACE)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        count = sum(parameter.numel() for parameter in tiny.network.parameters())
        metrics = {"acc": 0.25, "acc_stderr": 0.01, "f1,strict": float(count)}
        assert run_tasks(tiny, ["blimp", "arc"]) == {"arc": metrics, "blimp": metrics}
        with pytest.raises(EvaluationError, match="no task unknown"):
            run_tasks(tiny, ["unknown"])
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
            del sys.modules[name]


def test_without_the_harness(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reviver.evaluation.harness.find_spec", lambda name: None)
    with pytest.raises(ResourceError) as caught:
        run_tasks(tiny, ["arc"])
    assert "pip install 'reviver[eval]'" in (caught.value.hint or "")
