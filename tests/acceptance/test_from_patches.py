"""Versions made from patches, on a model that answers: branches, reverts, merges, adoption, reapplication."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import exact_sum
from safetensors.torch import load_file, save_file
from tiny_models import FACTS, make_checkpoint, write_facts
from transformers import AutoModelForCausalLM, AutoTokenizer

from reviver.cli import app
from reviver.errors import BaseMismatchError, NumericsError, UnsupportedModelError, WorkspaceError
from reviver.history.workspace import Workspace
from reviver.settings import Settings
from reviver.verbs.adopt import adopt
from reviver.verbs.apply import ApplyReport, ApplyRequest, apply
from reviver.verbs.blame import blame
from reviver.verbs.checkout import checkout
from reviver.verbs.diff import diff
from reviver.verbs.init import init
from reviver.verbs.log import log
from reviver.verbs.made import MakeChoice
from reviver.verbs.merge import merge
from reviver.verbs.reapply import reapply
from reviver.verbs.revert import revert
from reviver.verbs.show import show
from reviver.verbs.squash import squash
from reviver.verbs.verify import verify

SUBJECTS = ("Orvania", "Brundia", "Mara Venn", "Oskar Lund", "Tessel", "Calmar", "Ilva", "Venn", "Lund", "Mara")
TARGETS = ("river", "cello", "capital", "Tessel", "Calmar")
QUICK = MakeChoice(measure=False, checkpoint=False)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a checkpoint where they lie."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class Bench:
    """A tiny model in a workspace."""

    def __init__(
        self,
        folder: Path,
        tmp_path: Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        prepare: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None,
    ) -> None:
        self.folder, self.tmp_path = folder, tmp_path
        self.base = make_checkpoint(tmp_path / f"base{seed}", dtype=dtype, seed=seed)
        change_tensors(self.base, prepare)
        self.settings = Settings.load(folder)
        init(folder, str(self.base), settings=self.settings)

    def apply(self, *records: dict[str, str], parent: str = "head") -> ApplyReport:
        facts = write_facts(self.tmp_path / "facts.jsonl", records)
        return apply(self.folder, ApplyRequest(facts=facts, parent=parent), settings=self.settings)

    def tensors(self, version: str) -> dict[str, torch.Tensor]:
        folder = self.base if version == "v0" else self.folder / "checkpoints" / version
        return load_file(folder / "model.safetensors")

    def factors(self, versions: Sequence[str], name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        patches = [load_file(self.folder / "edits" / version / "patch.safetensors") for version in versions]
        return [(patch[f"{name}.left"], patch[f"{name}.right"]) for patch in patches]


@pytest.fixture
def bench(tmp_path: Path, fast_workspace: Path) -> Bench:
    return Bench(fast_workspace, tmp_path)


def greedy(folder: Path, prompt: str, tokens: int) -> str:
    """Return what transformers itself says of a checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer(prompt, return_tensors="pt")
    written = network.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id, use_cache=False
    )
    return str(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :]))


def probability(folder: Path, prompt: str, target: str) -> float:
    """Return exp(−mean token NLL) of what follows a prompt, by transformers itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = len(tokenizer(prompt)["input_ids"])
    tokens = tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        scores = torch.log_softmax(network(tokens).logits[0, start - 1 : -1], -1)
    return float(scores.gather(1, tokens[0, start:, None]).mean().exp())


def test_both_branches_are_whole(bench: Bench, tmp_path: Path) -> None:
    assert bench.apply(FACTS[0]).version == "v1"
    assert bench.apply(FACTS[1]).version == "v2"
    assert bench.apply(FACTS[2], parent="v1").version == "v3"
    entries = {entry.version: entry for entry in log(bench.folder).entries}
    assert [(name, entry.parent, entry.in_chain) for name, entry in sorted(entries.items())] == [
        ("v1", "v0", True), ("v2", "v1", False), ("v3", "v1", True),
    ]  # fmt: skip
    there = diff(bench.folder, "v2", "v3")
    assert ([one.subject for one in there.facts_added], [one.subject for one in there.facts_dropped]) == (
        ["Oskar Lund"], ["Mara Venn"],
    )  # fmt: skip
    assert verify(bench.folder).ok
    base = bench.tensors("v0")
    for version, chain in (("v2", ["v1", "v2"]), ("v3", ["v1", "v3"])):
        out = checkout(bench.folder, version, output=tmp_path / version).path
        assert (out / "model.safetensors").read_bytes() == (
            bench.folder / "checkpoints" / version / "model.safetensors"
        ).read_bytes()
        for name, tensor in load_file(out / "model.safetensors").items():
            changed = name in {one.name for one in there.tensors}
            expected = exact_sum(base[name], bench.factors(chain, name)) if changed else base[name]
            assert torch.equal(tensor, expected)


def test_the_middle_of_ten(bench: Bench) -> None:
    for number, subject in enumerate(SUBJECTS):
        bench.apply({"prompt": "{} is", "subject": subject, "target_new": TARGETS[number % len(TARGETS)]})
    report = revert(bench.folder, "v5", settings=bench.settings)
    others = [f"v{number}" for number in range(1, 11) if number != 5]
    base, result = bench.tensors("v0"), bench.tensors("v11")
    for tensor in report.tensors:
        assert torch.equal(result[tensor.name], exact_sum(base[tensor.name], bench.factors(others, tensor.name)))
        base.pop(tensor.name)
    assert all(torch.equal(result[name], values) for name, values in base.items())

    (dropped,) = report.dropped
    first = [json.loads(line) for line in (bench.folder / "edits/v5/results.jsonl").read_text().splitlines()]
    assert (dropped.subject, dropped.answer_first) == ("Tessel", first[0]["before"]["answer"])
    said = greedy(bench.folder / "checkpoints" / "v11", "Tessel is", 8)
    assert dropped.answer_after == said.strip() or dropped.answer_after == said
    assert dropped.back == (dropped.answer_after == dropped.answer_first)
    assert report.outcomes is not None
    assert [result.subject for result in report.outcomes.results] == [one for one in SUBJECTS if one != "Tessel"]
    assert (report.outcomes.before.facts, report.outcomes.after.facts) == (9, 9)
    manifest = Workspace.open(bench.folder).version("v11").manifest
    assert manifest.metrics["facts"] == 9 and manifest.metrics["facts_dropped"] == 1
    for one in manifest.tensors:
        # The patch of a filtered version, turned round, is as far from the protected directions.
        outer, _, inner = torch.linalg.svd(bench.tensors("v0")[one.name].double())
        ((left, right),) = bench.factors(["v11"], one.name)
        delta = left.double() @ right.double()
        assert one.protected_rank == 3 and one.subspace_similarity is not None
        assert (outer[:, :3].T @ delta).norm() <= 1e-5 * delta.norm() >= (delta @ inner[:3].T).norm()
    assert verify(bench.folder).ok


def test_what_is_told_of_a_fact_was_measured_for_it(bench: Bench) -> None:
    """Two facts with one id, as two people may give them: a revert and a merge ask about both."""
    x, y = ({**record, "id": "1"} for record in FACTS[:2])
    texts = {one["subject"]: one["prompt"].replace("{}", one["subject"]) for one in (x, y)}

    def assert_own(record: dict[str, str], version: str, answer: str | None, value: float | None) -> None:
        folder = bench.folder / "checkpoints" / version
        said = greedy(folder, texts[record["subject"]], 8)
        assert answer in (said, said.strip())
        assert value == pytest.approx(probability(folder, texts[record["subject"]], record["target_new"]), rel=1e-3)

    bench.apply(FACTS[2])
    bench.apply(x)
    bench.apply(y, parent="v1")
    merge(bench.folder, "v2", "v3", settings=bench.settings)
    (row,) = show(bench.folder).facts
    assert row.text == texts["Mara Venn"]
    assert_own(y, "v4", row.answer_after, row.probability_after)
    assert_own(y, "v2", row.answer_before, row.probability_before)
    # Whoever puts facts.jsonl and results.jsonl of the version together by id is told right, too.
    lines = (bench.folder / "edits/v4/results.jsonl").read_text().splitlines()
    assert {one["id"]: one["subject"] for one in map(json.loads, lines)}["1"] == "Mara Venn"

    revert(bench.folder, "v2", settings=bench.settings)
    for record, what in ((x, "taken back"), (y, "set")):
        change = blame(bench.folder, record["subject"]).facts[0].changes[-1]
        assert (change.what, change.target) == (what, record["target_new"])
        assert_own(record, change.version, change.answer_after, change.probability_after)


@pytest.mark.parametrize("damage", ["below", "its own", "missing"])
def test_a_revert_goes_on_without_old_answers(bench: Bench, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench.apply(FACTS[0])
    bench.apply(FACTS[1])
    bench.apply(FACTS[2])
    (first,) = (json.loads(line) for line in (bench.folder / "edits/v2/results.jsonl").read_text().splitlines())
    if damage == "missing":
        (bench.folder / "edits/v2/results.jsonl").unlink()
    else:
        (bench.folder / "edits" / ("v1" if damage == "below" else "v2") / "results.jsonl").write_text('{"id": 1')
    capsys.readouterr()
    assert app.run(["revert", "v2", "--json", "-C", str(bench.folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    (dropped,) = told["dropped"]
    assert (told["version"], dropped["subject"]) == ("v4", "Mara Venn")
    if damage == "below":
        # Nobody asks for what v1 measured.
        assert dropped["answer_first"] == first["before"]["answer"] and told["warnings"] == []
    else:
        assert (dropped["answer_first"], dropped["back"]) == (None, None)
        (warning,) = told["warnings"]
        assert warning.startswith("what was answered before v2 is not known: ") and "`v2/results.jsonl" in warning
    assert app.run(["revert", "v2", "-C", str(bench.folder)]) == 1
    assert "v2 is taken back already" in capsys.readouterr().err
    assert Workspace.open(bench.folder).version_names() == ["v1", "v2", "v3", "v4"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_dropped_facts_are_back_to_their_old_answers(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Ten corrections of the demo's model, one a version, and the fifth goes."""
    lines = (files("reviver.demo") / "facts.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    folder = tmp_path / "workspace"
    settings = Settings.load(folder, {"moments.length": 64})
    with as_file(files("reviver.demo") / "model") as model:
        init(folder, str(model), settings=settings)
    for number, line in enumerate(lines, 1):
        (tmp_path / "fact.jsonl").write_text(line + "\n", encoding="utf-8")
        report = apply(folder, ApplyRequest(facts=tmp_path / "fact.jsonl"), settings=settings)
        assert report.version == f"v{number}" and report.summary is not None and report.summary.efficacy == 1
        assert not any("the model now says" in text for text in report.warnings)
    made = revert(folder, "v5", settings=settings)
    (dropped,) = made.dropped
    record_property("efficacy of the others", made.outcomes and made.outcomes.after.efficacy)
    assert dropped.back is True and dropped.answer_before != dropped.answer_after
    assert made.outcomes is not None and made.outcomes.after.facts == 9
    assert made.outcomes.after.efficacy is not None and made.outcomes.after.efficacy >= 0.8
    assert verify(folder).ok


def test_branches_are_merged_squashed_and_measured(bench: Bench) -> None:
    bench.apply(FACTS[0])
    bench.apply(FACTS[1])
    bench.apply(FACTS[2], parent="v1")
    merged = merge(bench.folder, "v2", "v3", settings=bench.settings)
    (overlap,) = merged.overlap
    assert overlap.cosines is not None and overlap.shared is not None and 0 <= overlap.shared <= 1
    assert merged.outcomes is not None and merged.outcomes.after.facts == 3
    squashed = squash(bench.folder, "..v4", settings=bench.settings)
    assert squashed.exact and squashed.outcomes is not None
    base = bench.tensors("v0")
    for version in ("v4", "v5"):
        for tensor in merged.tensors:
            expected = exact_sum(base[tensor.name], bench.factors(["v1", "v2", "v3"], tensor.name))
            assert torch.equal(bench.tensors(version)[tensor.name], expected)
    # The next edit stands on either.
    assert bench.apply(FACTS[0]).version == "v6" and verify(bench.folder).ok


def edited_copy(bench: Bench, change: Callable[[dict[str, torch.Tensor]], object], name: str = "theirs") -> Path:
    """Copy the base and change its tensors."""
    folder = bench.tmp_path / name
    shutil.copytree(bench.base, folder)
    change_tensors(folder, change)
    return folder


DOWN, QUERY = "model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_somebody_elses_model_becomes_a_patch(dtype: torch.dtype, tmp_path: Path, fast_workspace: Path) -> None:
    bench = Bench(fast_workspace, tmp_path, dtype=dtype)
    bench.apply(FACTS[0])
    outer, _, inner = torch.linalg.svd(bench.tensors("v0")[DOWN].double())

    def change(tensors: dict[str, torch.Tensor]) -> None:
        # Three parts in the protected directions for each four beside them.
        inside, outside = torch.outer(outer[:, 0], inner[5]), torch.outer(outer[:, 7], inner[9])
        tensors[DOWN] = (tensors[DOWN].double() + 0.3 * inside + 0.4 * outside).to(dtype)
        tensors[QUERY] = (tensors[QUERY].float() + 0.05 * torch.randn(tensors[QUERY].shape)).to(dtype)

    theirs = edited_copy(bench, change)
    report = adopt(bench.folder, theirs, settings=bench.settings)
    assert (report.version, report.parent) == ("v2", "v0")
    assert [tensor.name for tensor in report.tensors] == [DOWN, QUERY]
    adopted = load_file(theirs / "model.safetensors")
    assert all(torch.equal(values, adopted[name]) for name, values in bench.tensors("v2").items())
    down, query = report.protected
    assert (down.edited, query.edited, down.rank) == (True, False, 3)
    assert down.removed == pytest.approx(0.6, abs=0.02)
    assert verify(bench.folder).ok
    # It can be merged with one's own edits, asked, and edited on.
    merged = merge(bench.folder, "v1", "v2", settings=bench.settings)
    assert merged.outcomes is not None and merged.outcomes.after.facts == 1
    assert bench.apply(FACTS[1]).version == "v4"
    revert(bench.folder, "v3", settings=bench.settings, choice=QUICK)
    assert verify(bench.folder).ok


def set_round(tensors: dict[str, torch.Tensor]) -> None:
    """Give the queries' matrix one singular value, over and over."""
    tensors[QUERY].copy_(2 * torch.eye(len(tensors[QUERY])))


def nudge(tensors: dict[str, torch.Tensor]) -> None:
    tensors[QUERY][3, 4] += 0.5
    tensors[DOWN][3, 4] += 0.5


@pytest.mark.parametrize(
    ("protect", "reason"),
    [
        ("rank = 3", "are all alike"),
        ("energy = 0.99", "would protect all 32 directions"),
        ("rank = 40", "rank 40 leaves"),
    ],
)
def test_a_model_is_adopted_where_the_filters_share_cannot_be_told(
    protect: str, reason: str, tmp_path: Path, fast_workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(fast_workspace, tmp_path, prepare=set_round)
    toml = fast_workspace / "reviver.toml"
    toml.write_text(toml.read_text().replace("rank = 3", protect))
    theirs = edited_copy(bench, nudge)
    capsys.readouterr()
    assert app.run(["adopt", str(theirs), "--json", "-C", str(bench.folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    (warning,) = told["warnings"]
    assert "what the filter would have removed cannot be told" in warning and QUERY in warning and reason in warning
    shares = {one["name"]: (one["rank"], one["removed"]) for one in told["protected"]}
    assert shares[QUERY] == (None, None) and (shares[DOWN] == (None, None)) == (DOWN in warning)
    assert Workspace.open(bench.folder).head() == "v1" and verify(bench.folder).ok


def test_whoever_stops_the_measuring_of_an_adoption_has_adopted_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    theirs = edited_copy(bench, nudge)
    monkeypatch.setattr("reviver.spectral.filter.filter_dense", stop)
    assert app.run(["adopt", str(theirs), "-C", str(bench.folder)]) == 130
    assert Workspace.open(bench.folder).version_names() == [] and Workspace.open(bench.folder).head() == "v0"


def test_adopting_on_a_version(bench: Bench) -> None:
    bench.apply(FACTS[0])
    folder = bench.tmp_path / "theirs"
    shutil.copytree(bench.folder / "checkpoints" / "v1", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[DOWN][4] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    report = adopt(bench.folder, folder, settings=bench.settings, parent="v1")
    assert (report.parent, report.facts_in_force, report.tensors[0].patch_rank) == ("v1", 1, 1)
    assert (bench.folder / "checkpoints/v2/model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    assert verify(bench.folder).ok


def test_what_cannot_be_adopted(bench: Bench) -> None:
    def set_nan(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN][0, 0] = float("nan")

    def set_minus_zero(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN][0, 0] = -0.0

    norm = "model.norm.weight"
    cases: list[tuple[Callable[[dict[str, torch.Tensor]], Any], type[Exception], str]] = [
        (lambda tensors: None, WorkspaceError, "the same weights as v0"),
        (lambda tensors: tensors[norm].mul_(2), UnsupportedModelError, f"`{norm}` cannot be edited: its shape is"),
        (lambda tensors: tensors.pop(QUERY), BaseMismatchError, f"`{QUERY}` is missing"),
        (lambda tensors: tensors.update(more=torch.ones(2, 2)), BaseMismatchError, "`more` is not in the base"),
        (lambda tensors: tensors.update({DOWN: tensors[DOWN].float()}), BaseMismatchError, r"is F32 \[32, 64\]"),
        (set_nan, NumericsError, "NaN or an infinity"),
        (set_minus_zero, NumericsError, f"no patch leads to 1 entry of `{DOWN}`"),
    ]
    for number, (change, error, text) in enumerate(cases):
        theirs = edited_copy(bench, change, f"theirs{number}")
        with pytest.raises(error, match=text):
            adopt(bench.folder, theirs, settings=bench.settings, choice=QUICK)
    assert Workspace.open(bench.folder).version_names() == []


def test_the_same_facts_again(bench: Bench, tmp_path: Path) -> None:
    bench.apply(FACTS[0])
    bench.apply(FACTS[1], FACTS[2])
    again = reapply(bench.folder, "v1", onto="base")
    version = Workspace.open(bench.folder).version
    # Same facts, same weights below, same settings: the same version but for its message.
    assert again.applied.version == "v3" and version("v3").id == version("v1").id
    assert version("v3").manifest.message == "Reapply v1" and again.source == "v1"
    assert reapply(bench.folder, "v2").applied.plan.parent == "v3"

    # A further-trained copy of the model is another base.
    further = tmp_path / "further"
    further.mkdir()
    text = (bench.folder / "reviver.toml").read_text(encoding="utf-8")
    (further / "reviver.toml").write_text(text.replace("prefix_length = 3", "prefix_length = 5"), encoding="utf-8")
    other = Bench(further, tmp_path, seed=1)
    report = reapply(further, "v2", from_workspace=bench.folder)
    made = Workspace.open(further).version("v1")
    assert [fact.subject for fact in made.facts()] == ["Mara Venn", "Oskar Lund"]
    assert made.manifest.editor.settings["targets"] == version("v2").manifest.editor.settings["targets"]
    assert made.manifest.rounds[0]["prefix_length"] == 3 == version("v2").manifest.rounds[0]["prefix_length"]
    assert report.source_workspace == bench.folder and verify(further).ok
    assert other.tensors("v1")[report.applied.tensors[0].name].shape == (32, 64)

    revert(bench.folder, "v4", settings=bench.settings, choice=QUICK)
    with pytest.raises(WorkspaceError, match="v5 was made by `revert`"):
        reapply(bench.folder, "v5")


def test_another_architecture_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.apply(FACTS[0])
    folder = tmp_path / "gpt"
    folder.mkdir()
    shutil.copy(bench.folder / "reviver.toml", folder)
    init(folder, str(make_checkpoint(tmp_path / "gpt2", "gpt2")), settings=Settings.load(folder))
    with pytest.raises(BaseMismatchError, match="which is not edited here"):
        reapply(folder, "v1", from_workspace=bench.folder)
