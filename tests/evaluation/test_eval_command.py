"""`eval`, `ask`, `show` and the gates of `apply` from the command line: what is measured, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from second_reader import Outcome, open_folder
from tiny_models import FACTS, WORDS, write_facts
from transformers import AutoModelForCausalLM, AutoTokenizer

from reviver.editing import versions
from reviver.editing.model import EditableModel
from reviver.evaluation.scores import answers, score_continuations
from reviver.history.workspace import Workspace

Call = Callable[..., Outcome]


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared workspace, to be written to."""
    return shutil.copytree(prepared, tmp_path / "workspace", symlinks=True)


def _contents(folder: Path) -> dict[str, bytes]:
    # The lock file names its last holder, and is no part of what a person keeps.
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def _pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text(
        '{"good": "The river Ilva rises near Brundia.", "bad": "Ilva The rises river near Brundia.", "paradigm": "order"}\n'
    )
    return path


def test_all_suites_of_a_version_are_kept_beside_it(workspace: Path, tmp_path: Path, call: Call) -> None:
    before = _contents(workspace)
    done = call("eval", "-C", workspace, "--pairs", _pairs(tmp_path), "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["version"], report["warnings"]) == ("v2", [])
    assert [suite["suite"] for suite in report["suites"]] == ["counterfact", "fluency", "perplexity", "pairs", "drift"]
    after = _contents(workspace)
    added = {name for name in after if name not in before}
    assert added == {f"edits/v2/evaluations/{suite['suite']}.json" for suite in report["suites"]}
    assert {name for name in before if before[name] != after[name]} == {".reviver/operations.jsonl"}
    for suite in report["suites"]:
        raw = after[f"edits/v2/evaluations/{suite['suite']}.json"]
        kept = json.loads(raw)
        assert kept["metrics"] == suite["metrics"] and kept["version_id"] == report["id"]
        assert raw == (json.dumps(kept, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
        assert str(tmp_path).encode() not in raw, "no path of this machine"
        assert b"Orvania" not in raw, "no text of a fact"


def test_a_second_measurement_gives_the_same_bytes_but_for_the_time(workspace: Path, call: Call) -> None:
    folder = workspace / "edits" / "v1" / "evaluations"
    found = []
    for _ in range(2):
        assert call("eval", "v1", "-C", workspace, "-q") == Outcome(0, "v1\n", "")
        found.append({path.name: json.loads(path.read_bytes()) | {"created": ""} for path in folder.iterdir()})
    assert found[0] == found[1] and len(found[0]) == 4


def test_every_fact_of_the_chain_counts_once_with_its_last_target(workspace: Path, call: Call) -> None:
    report = json.loads(call("eval", "-C", workspace, "--suite", "counterfact", "--json").stdout)
    metrics = report["suites"][0]["metrics"]
    # v1 set three facts, v2 one of them again and a fourth.
    assert metrics["facts"] == 4
    assert [(group["name"], group["facts"]) for group in metrics["ages"]] == [("v1", 2), ("v2", 2)]
    assert [(group["first"], group["last"]) for group in metrics["blocks"]] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    facts = {
        json.loads(line)["id"]: json.loads(line)
        for name in ("v1", "v2")
        for line in (workspace / "edits" / name / "facts.jsonl").read_text().splitlines()
    }
    overwritten = next(fact["id"] for fact in facts.values() if fact["target_new"] == FACTS[0]["target_new"])
    held = [fact for name, fact in facts.items() if name != overwritten]
    # The checkpoint that was written, read by transformers alone.
    network = AutoModelForCausalLM.from_pretrained(workspace / "checkpoints" / "v2", dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(workspace / "checkpoints" / "v2")
    missed = set()
    for fact in held:
        prompt = fact["prompt"].replace("{}", fact["subject"])
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(f"{prompt} {fact['target_new']}")["input_ids"]
        best = network(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        if best[start - 1 : -1] != ids[start:]:
            missed.add(fact["id"])
    assert set(metrics["missed"]) == missed
    assert metrics["efficacy"] == 1 - len(missed) / 4


def test_given_facts_replace_the_version_s_own_and_zsre_runs_on_them(
    workspace: Path, tmp_path: Path, call: Call
) -> None:
    facts = write_facts(tmp_path / "others.jsonl", FACTS[1:])
    arguments = ["--facts", facts, "--suite", "zsre", "--suite", "counterfact", "--json"]
    suites = json.loads(call("eval", "v1", "-C", workspace, *arguments).stdout)["suites"]
    assert [suite["suite"] for suite in suites] == ["counterfact", "zsre"], "in their own order"
    assert suites[0]["metrics"]["facts"] == suites[1]["metrics"]["facts"] == 2
    assert "ages" not in suites[0]["metrics"]
    assert suites[0]["settings"]["facts"] == {
        "kind": "file",
        "name": "others.jsonl",
        "count": 2,
        "sha256": suites[1]["settings"]["facts"]["sha256"],
    }


def test_the_base_is_measured_too_and_kept_in_the_private_folder(workspace: Path, tmp_path: Path, call: Call) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of Orvania is Tessel.\n\nMara Venn plays the cello.\n")
    done = call("eval", "base", "-C", workspace, "--text", text, "--json")
    suites = {suite["suite"]: suite for suite in json.loads(done.stdout)["suites"]}
    assert set(suites) == {"fluency", "perplexity"}
    assert suites["perplexity"]["settings"]["text"]["name"] == "text.txt"
    assert (workspace / ".reviver" / "evaluations" / "perplexity.json").is_file()
    shown = json.loads(call("show", "base", "-C", workspace, "--json").stdout)
    assert [one["suite"] for one in shown["evaluations"]] == ["fluency", "perplexity"]
    assert shown["evaluations"][1]["metrics"] == suites["perplexity"]["metrics"]


def test_human_output(workspace: Path, tmp_path: Path, call: Call) -> None:
    done = call("eval", "-C", workspace, "--pairs", _pairs(tmp_path))
    for text in ("counterfact: 4 facts", "ES", "NS", "fluency", "perplexity", "norm growth", "pairs: 1 pair", "v1  "):
        assert text in done.stdout
    shown = call("show", "-C", workspace)
    assert "counterfact of 2" in shown.stdout and "norm growth" in shown.stdout


def test_a_forged_evaluation_is_a_warning_of_show(workspace: Path, call: Call) -> None:
    folder = workspace / "edits" / "v2" / "evaluations"
    assert call("eval", "-C", workspace, "--suite", "drift", "-q").code == 0
    foreign = json.loads((folder / "drift.json").read_bytes()) | {"version_id": "0" * 64}
    (folder / "drift.json").write_text(json.dumps(foreign))
    (folder / "bad.json").write_text('{"schema": 1, "suite": "\\u001b[31m"}')
    (folder / "link.json").symlink_to("/etc/hostname")
    done = call("show", "-C", workspace, "--json")
    report = json.loads(done.stdout)
    assert done.code == 0 and report["evaluations"] == [] and len(report["warnings"]) == 3


def test_results_are_not_written_through_a_link(workspace: Path, tmp_path: Path, call: Call) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (workspace / "edits" / "v2" / "evaluations").symlink_to(elsewhere)
    done = call("eval", "-C", workspace, "--suite", "drift")
    assert done.code == 1 and "is a link" in done.stderr
    assert list(elsewhere.iterdir()) == []


WRONG = [
    (["--suite", "glue"], 2, "there is no suite `glue`"),
    (["--suite", "pairs"], 2, "has no minimal pairs"),
    (["base", "--suite", "counterfact"], 2, "has no facts"),
    (["--suite", "lm-eval"], 2, "has no tasks"),
    (["--pairs", "{bad}"], 1, "1 problem in"),
    (["--pairs", "nowhere.jsonl"], 1, "does not exist"),
    (["--text", "{bad}"], 1, "bad.jsonl` line 1"),
    (["--text", "{folder}"], 1, "is not a file"),
    (["--text", "{empty}"], 1, "holds no text"),
    (["--facts", "{bad}"], 1, "bad.jsonl:1"),
    (["v9"], 1, "v9"),
    (["--limit", "0"], 2, "limit"),
    (["--device", "cuda:9"], 1, "cuda:9"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_what_is_wrong_is_told_and_nothing_is_written(
    arguments: list[str], code: int, said: str, workspace: Path, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"god": "x", "bad": "y"}\n')
    (tmp_path / "empty.txt").write_text("\n\n")
    places = {"{bad}": tmp_path / "bad.jsonl", "{folder}": tmp_path, "{empty}": tmp_path / "empty.txt"}
    filled = [str(places.get(argument, argument)) for argument in arguments]
    before = _contents(workspace)
    done = call("eval", *filled, "-C", workspace)
    assert (done.code, done.stdout) == (code, "")
    assert said in done.stderr
    lines = done.stderr.splitlines()
    assert sum(line.startswith("error:") for line in lines) == sum(line.startswith("hint:") for line in lines) == 1
    assert _contents(workspace) == before


def test_lm_eval_is_asked_for_before_the_model_is_loaded(
    workspace: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reviver.evaluation.harness.find_spec", lambda name: None)
    done = call("eval", "-C", workspace, "--task", "arc_easy")
    assert done.code == 1 and "pip install 'reviver[eval]'" in done.stderr


def test_ask_puts_versions_one_after_another_into_one_model(
    prepared: Path, workspace: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "The capital of Orvania is"
    loaded = []
    real = versions.open_pinned

    def load(*given: Any) -> EditableModel:
        loaded.append(1)
        return real(*given)

    monkeypatch.setattr(versions, "open_pinned", load)
    done = call("ask", prompt, "v2", "base", "v1", "head", "--tokens", "6", "-C", workspace, "--json")
    report = json.loads(done.stdout)
    assert loaded == [1]
    assert [one["version"] for one in report["answers"]] == ["v2", "v0", "v1"], "the head is v2, which answers once"
    for one in report["answers"]:
        folder = workspace / "checkpoints" / one["version"]
        model = open_folder(folder if folder.is_dir() else prepared.parent / "base")
        assert one["answer"] == answers(model, [prompt], tokens=6)[0]
    assert report["same"] is (len({one["answer"] for one in report["answers"]}) == 1)
    human = call("ask", prompt, "-C", workspace)
    assert human.stdout.splitlines()[0].split() == ["version", "answer"]
    assert [line.split()[0] for line in human.stdout.splitlines()[1:]] == ["v0", "v2"]
    for arguments, code, said in (
        (["ask", ""], 2, "the prompt is empty"),
        (["ask", "x", "v7"], 1, "v7"),
        (["ask", "x", "--tokens", "0"], 2, "0 tokens"),
    ):
        done = call(*arguments, "-C", workspace)
        assert done.code == code and said in done.stderr and done.stdout == ""


def test_a_gate_that_holds_is_kept_in_the_manifest(workspace: Path, tmp_path: Path, call: Call) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", ({**FACTS[2], "target_new": "Calmar", "target_true": "Tessel"},))
    gate = "es>=0,retained<=1,perplexity<=1000x,norm_growth>=0.5,fluency>0,subspace_similarity>=0"
    done = call("apply", facts, "-C", workspace, "--gate", gate, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [one["held"] for one in report["gates"]] == [True] * 6
    assert report["gates"][2]["limit"] == pytest.approx(1000 * report["gates"][2]["parent"])
    manifest = json.loads((workspace / "edits" / "v3" / "manifest.json").read_bytes())
    assert manifest["metrics"]["gates"] == report["gates"]
    # What `eval` measures afterwards is what the gate measured, by the same texts.
    suites = json.loads(call("eval", "-C", workspace, "--suite", "perplexity", "--suite", "drift", "--json").stdout)[
        "suites"
    ]
    assert suites[0]["metrics"]["perplexity"] == pytest.approx(report["gates"][2]["value"], rel=1e-4)
    assert suites[1]["metrics"]["norm_growth"] == pytest.approx(report["gates"][3]["value"], abs=1e-6)


def test_neighbours_are_those_that_the_base_answers_whoever_counts_them(
    workspace: Path, tmp_path: Path, call: Call
) -> None:
    base = open_folder(Path(Workspace.open(workspace).pin().folder))
    prompts = [f"{one} {other}" for one in ("The river", "Mara Venn", "Calmar") for other in WORDS.split()]
    neighbors = [
        {"prompt": prompt, "answer": answer}
        for prompt, answer in zip(prompts, answers(base, prompts, tokens=1), strict=True)
        if answer.isprintable() and answer.strip()
    ]
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps({**FACTS[2], "target_new": "Brundia", "neighborhood_prompts": neighbors}) + "\n")
    gate = ["--gate", "neighbors_kept>=0", "--no-checkpoint"]
    done = call("apply", facts, "-C", workspace, *gate, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    shares = report["summary"]
    (suite,) = json.loads(call("eval", "-C", workspace, "--suite", "counterfact", "--facts", facts, "--json").stdout)[
        "suites"
    ]
    measured = suite["metrics"]
    assert shares["neighbors_kept"] == pytest.approx(measured["neighbors_kept"], abs=1e-6)
    assert shares["neighbors"] == measured["neighbors_known"]
    assert report["gates"][0]["value"] == shares["neighbors_kept"]
    # The versions below had lost some of them.
    assert 0 < sum(report["results"][0]["neighbors"]["before"]) < shares["neighbors"]
    # A version that was made from patches counts the same.
    outcomes = json.loads(call("revert", "v2", "-C", workspace, "--json").stdout)["outcomes"]
    assert outcomes["before"]["neighbors_kept"] == shares["neighbors_kept"]
    assert outcomes["after"]["neighbors"] == shares["neighbors"]


def test_what_the_parent_says_already_is_told(workspace: Path, tmp_path: Path, call: Call) -> None:
    """As on a new release of the model, which has learnt some of the facts."""
    head = open_folder(workspace / "checkpoints" / "v2")
    asked = [(form, word) for form in ("The river {}", "{} is", "Calmar {}") for word in dict.fromkeys(WORDS.split())]
    prompts = [form.format(word) for form, word in asked]
    said = answers(head, prompts, tokens=1)
    scores = score_continuations(head, list(zip(prompts, said, strict=True)))
    prompt, subject, target = next(
        (*one, answer)
        for one, answer, score in zip(asked, said, scores, strict=True)
        if score.exact and answer.isalnum()
    )
    other = {**FACTS[1], "subject": "Ilva", "target_new": "Calmar"}
    facts = write_facts(tmp_path / "facts.jsonl", ({"prompt": prompt, "subject": subject, "target_new": target}, other))
    report = json.loads(call("apply", facts, "-C", workspace, "--json").stdout)
    assert [one["known"] for one in report["results"]] == [True, False]
    assert report["summary"]["known"] == 1
    lines = (workspace / "edits" / "v3" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["known"] for line in lines] == [True, False]
    assert json.loads((workspace / "edits" / "v3" / "manifest.json").read_bytes())["metrics"]["known"] == 1
    again = call("reapply", "v3", "--onto", "v2", "-C", workspace)
    assert "v2 says 1 of these facts already" in again.stdout and "known before" in again.stdout
    assert "1 known before" in call("show", "-C", workspace).stdout


def test_a_version_published_without_its_facts_is_measured_and_built_on(
    workspace: Path, tmp_path: Path, call: Call
) -> None:
    for name in ("facts.jsonl", "results.jsonl"):
        (workspace / "edits" / "v1" / name).unlink()
    said = "the facts of v1 are withheld"
    one = call("eval", "v2", "--suite", "drift", "-C", workspace, "--json")
    assert one.code == 0 and json.loads(one.stdout)["warnings"] == []
    every = call("eval", "v2", "-C", workspace, "--json")
    assert every.code == 0, every.stderr
    report = json.loads(every.stdout)
    assert [suite["suite"] for suite in report["suites"]] == ["fluency", "perplexity", "drift"]
    assert report["warnings"] == [f"{said}, so nothing was measured on facts"]
    asked = call("eval", "v2", "--suite", "counterfact", "-C", workspace)
    assert asked.code == 1 and said in asked.stderr
    facts = write_facts(tmp_path / "facts.jsonl", FACTS[:1])
    made = call("apply", facts, "-C", workspace, "--json")
    assert made.code == 0, made.stderr
    assert json.loads(made.stdout)["version"] == "v3"


def test_a_version_that_misses_a_gate_is_not_made(workspace: Path, tmp_path: Path, call: Call) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", FACTS[:1])
    before = _contents(workspace)
    done = call("apply", facts, "-C", workspace, "--gate", "efficacy>1, es >= 0,norm_growth<=0.5x")
    assert (done.code, done.stdout) == (3, "")
    assert "v3 misses 2 gates of 3 and was not made: efficacy>1" in done.stderr
    assert ".reviver/refused-v3.json" in done.stderr
    after = _contents(workspace)
    changed = {name for name in after if after[name] != before.get(name)}
    # The rounds stay for another try with another gate.
    assert {name for name in changed if not name.startswith(".reviver/staging/")} == {".reviver/refused-v3.json"}
    assert before.keys() <= after.keys()
    kept = json.loads(after[".reviver/refused-v3.json"])
    assert [one["held"] for one in kept["gates"]] == [False, True, False]
    assert kept["measured"]["efficacy"] == kept["gates"][0]["value"]
    assert kept["parent_measured"]["norm_growth"] == pytest.approx(kept["gates"][2]["parent"], abs=1e-6)
    assert kept["results"][0]["id"] and kept["metrics"]["facts"] == 1
    assert call("status", "-C", workspace, "-q").code == 0
    # The number was not used: the next version has it.
    assert call("apply", facts, "-C", workspace, "-q").stdout == "v3\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--gate", "es>=0.9,perplexity<="], 2, "at character 21"),
        (["--gate", "nonsense>=1"], 2, "at character 1"),
        (["--gate", "es>=0.9", "--gate-text", "nowhere.txt"], 1, "check `--gate-text`"),
    ],
)
def test_a_gate_that_does_not_parse_is_told_before_anything_is_read(
    arguments: list[str], code: int, said: str, workspace: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reviver.verbs import edit

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(edit, "open_pinned", fail)
    before = _contents(workspace)
    # Not even the facts are looked for.
    done = call("apply", "nowhere.jsonl", "-C", workspace, *arguments)
    assert (done.code, done.stdout) == (code, "") and said in done.stderr
    assert _contents(workspace) == before
