"""`doctor` from the command line: the machine, a model with and without facts, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
import transformers
from second_reader import STORIES, Outcome, records_of
from tiny_models import FACTS, write_facts

Call = Callable[..., Outcome]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_machine(tmp_path: Path, call: Call) -> None:
    done = call("doctor", "-C", tmp_path, "--json")
    report = json.loads(done.stdout)
    assert done.code == 0 and report["model"] is None and report["warnings"] == []
    machine = report["machine"]
    assert machine["libraries"]["torch"] == torch.__version__
    assert machine["libraries"]["transformers"] == transformers.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["disk_free"] > 0 and machine["memory"] >= (machine["memory_free"] or 0)
    assert next(one["kind"] for one in machine["devices"]) == "cpu"
    assert len(machine["devices"]) == 1 + torch.cuda.device_count()
    human = call("doctor", "-C", tmp_path)
    for word in ("system", "processors", "memory", "disk", "libraries"):
        assert f"{word}  " in human.stdout
    assert call("doctor", "-C", tmp_path, "-q").stdout == f"{report['verdict'][0]}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_facts(prepared: Path, tmp_path: Path, call: Call) -> None:
    facts = write_facts(tmp_path / "facts.jsonl")
    before = _files(prepared)
    done = call("doctor", "base", "--facts", facts, "-C", prepared, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    model = report["model"]
    assert (model["model"], model["family"], model["depth"]) == ("base", "llama", 4)
    assert [block["layer"] for block in model["blocks"]] == [0, 1, 2], "behind the last no target can be sought"
    assert (model["subjects"], model["facts"]) == (3, len(FACTS))
    for block in model["blocks"]:
        assert block["write_share"] > 0 and 0 <= block["key_cosine"] <= block["closest_keys"] <= 1
        assert block["reachable"] in (0, 1 / 3, 2 / 3, 1)
        own = [one["own"] for one in block["responses"]]
        leaks = [one["leak"] for one in block["responses"]]
        assert own == sorted(own, reverse=True) and leaks == sorted(leaks, reverse=True)
        assert block["update_norms"] == sorted(block["update_norms"], reverse=True)
    assert any("only 3 subjects" in warning for warning in report["warnings"])
    assert report["verdict"][0].startswith("fit" if model["advice"]["fit"] else "not fit")
    # Facts alone mean the workspace's base.
    human = call("doctor", "--facts", facts, "-C", prepared)
    assert "MLP writes" in human.stdout and report["verdict"][0] in human.stdout
    assert _files(prepared) == before, "nothing is written"


def test_one_batch_and_thousands_of_edits_want_different_weights(tmp_path: Path, call: Call) -> None:
    with as_file(files("reviver.demo") / "model") as model:
        report = json.loads(call("doctor", model, "-C", tmp_path, "--json").stdout)
    advice = report["model"]["advice"]
    arrives = {one["weight"]: one["own"] for one in advice["responses"]}
    assert advice["weight"] == max(weight for weight, own in arrives.items() if own >= 0.95)
    assert advice["sequence_weight"] == max(weight for weight, own in arrives.items() if own >= 0.8)
    assert advice["sequence_weight"] > advice["weight"]
    assert f"λ = {advice['weight']:g};" in report["verdict"][0]
    assert f"batch after batch, λ = {advice['sequence_weight']:g} " in report["verdict"][1]


def test_a_foreign_model_that_cannot_learn_facts_is_told_so(tmp_path: Path, call: Call) -> None:
    records = records_of("counterfact-full.jsonl", 20)
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    done = call("doctor", STORIES, "--facts", facts, "-C", tmp_path, "--json")
    report = json.loads(done.stdout)
    assert done.code == 0 and report["model"]["advice"]["fit"] is False
    assert report["verdict"][0].startswith("not fit")
    assert any("facts are in reach" in line for line in report["verdict"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--facts", "nowhere.jsonl"], 2, "facts are tried on a model"),
        (["./nowhere"], 1, "does not exist"),
        (["base"], 1, "is not a workspace"),
        (["{base}", "--facts", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["{base}", "--device", "cuda:9"], 1, "cuda:9"),
        (["{base}", "--corpus", "no/such/corpus.txt"], 2, "corpus"),
    ],
)
def test_what_is_wrong(arguments: list[str], code: int, said: str, prepared: Path, tmp_path: Path, call: Call) -> None:
    places = [str(prepared.parent / "base") if argument == "{base}" else argument for argument in arguments]
    done = call("doctor", *places, "-C", tmp_path)
    assert (done.code, done.stdout) == (code, "") and said in done.stderr and "hint:" in done.stderr
    assert list(tmp_path.iterdir()) == []
