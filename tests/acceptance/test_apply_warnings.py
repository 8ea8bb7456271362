"""`init` says what it guesses; `apply` warns where facts did not take, and where all versions together are far from the base."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FACTS, make_checkpoint, write_facts
from transformers import AutoModelForCausalLM, AutoTokenizer

import reviver.verbs.apply as verb
from reviver.errors import NumericsError
from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init

FAR = re.compile(r"all versions together have moved `(\S+)` by ([\d.]+) times its norm: .*")


def distances(base: Path, version: Path, names: list[str]) -> dict[str, float]:
    """Return ‖W - W_0‖ / ‖W_0‖ of what is on disk, in float64."""
    before, after = load_file(base / "model.safetensors"), load_file(version / "model.safetensors")
    found = {}
    for name in names:
        old, new = before[name].double().numpy(), after[name].double().numpy()
        found[name] = float(np.linalg.norm(new - old) / np.linalg.norm(old))
    return found


def settings_of(folder: Path, more: dict[str, object]) -> Settings:
    """Return settings under which little is computed and no update is too large."""
    return Settings.load(
        folder,
        {
            "apply.device": "cpu",
            "apply.filter": "none",
            "apply.maximum_relative_norm": 1e6,
            "targets.prefixes": 0,
            "moments.tokens": 400,
            "moments.length": 32,
            **more,
        },
    )


def said_by(checkpoint: Path) -> int:
    """Return how many facts a checkpoint says word for word, asked with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    said = 0
    for fact in FACTS:
        text = str(fact["prompt"]).format(fact["subject"])
        wanted = tokenizer(f"{text} {fact['target_new']}", return_tensors="pt").input_ids
        prompt = tokenizer(text, return_tensors="pt").input_ids
        best = model(wanted).logits[0, prompt.shape[1] - 1 : -1].argmax(-1)
        said += best.tolist() == wanted[0, prompt.shape[1] :].tolist()
    return said


def test_the_farthest_tensor_is_told_once_all_versions_together_are_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_checkpoint(tmp_path / "base")
    folder = tmp_path / "workspace"
    settings = settings_of(folder, {"targets.steps": 4, "moments.weight": 0.01})
    init(folder, str(base), settings=settings)
    moved: dict[str, float] = {}
    warned = []
    for number, record in enumerate(FACTS[:2], start=1):
        facts = write_facts(tmp_path / "facts.jsonl", (record,))
        # The second patch alone would not be far.
        monkeypatch.setattr(verb, "FAR", max(moved.values(), default=1e6))
        report = apply(folder, ApplyRequest(facts=facts), settings=settings)
        moved = distances(base, folder / "checkpoints" / f"v{number}", [one.name for one in report.tensors])
        warned.append(report.warnings)
    assert max(moved.values()) > verb.FAR > max(one.relative_norm for one in report.tensors)
    (told,) = (told for told in map(FAR.fullmatch, warned[1]) if told)
    assert not any(map(FAR.fullmatch, warned[0]))
    assert told[1] == max(moved, key=lambda name: moved[name])
    assert float(told[2]) == pytest.approx(moved[told[1]], abs=0.051)


@pytest.mark.parametrize(("editor", "remedy"), [("memit", "`weight` (λ) under"), ("alphaedit", "`l2` under")])
def test_a_limit_that_all_versions_together_pass_is_refused_with_what_helps(
    editor: str, remedy: str, tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "base")
    folder = tmp_path / "workspace"
    given = {"targets.steps": 4, "moments.weight": 0.01, "apply.editor": editor}
    init(folder, str(base), settings=settings_of(folder, given))
    (folder / "reviver.toml").write_text("[editors.alphaedit]\nl2 = 0.01\nshare = 0.9\n", encoding="utf-8")
    facts = write_facts(tmp_path / "facts.jsonl", FACTS[:1])
    report = apply(folder, ApplyRequest(facts=facts), settings=settings_of(folder, given))
    moved = max(distances(base, folder / "checkpoints" / "v1", [one.name for one in report.tensors]).values())
    # The second update alone is far from the limit: it is the same fact again.
    limited = settings_of(folder, {**given, "apply.maximum_relative_norm": 0.99 * moved})
    with pytest.raises(
        NumericsError, match=r"all updates together would move `\S+` by [\d.]+ times its norm"
    ) as caught:
        apply(folder, ApplyRequest(facts=facts), settings=limited)
    assert remedy in (caught.value.hint or "")
    assert float(str(caught.value.facts["distance"])) > 0.99 * moved


def test_facts_that_did_not_take_are_counted(tmp_path: Path) -> None:
    """With a λ so large that the update is next to nothing, the model says what it said before."""
    base = make_checkpoint(tmp_path / "base")
    folder = tmp_path / "workspace"
    settings = settings_of(folder, {"targets.steps": 2, "moments.weight": 1e9})
    init(folder, str(base), settings=settings)
    report = apply(folder, ApplyRequest(facts=write_facts(tmp_path / "facts.jsonl")), settings=settings)
    said = said_by(folder / "checkpoints" / "v1")
    assert said < len(FACTS) / 2
    (told,) = (text for text in report.warnings if text.startswith("the model now says"))
    assert told.startswith(f"the model now says {said} of {len(FACTS)} facts: ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "block 1 and λ = 64 follow"),
        ({"model.layers": (0, 2)}, "λ = 64 follows"),
        ({"moments.weight": 5.0}, "block 1 follows"),
        ({"model.layers": (0, 2), "moments.weight": 5.0}, None),
    ],
)
def test_only_what_nobody_gave_is_called_a_guess(given: dict[str, object], said: str | None, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    folder = tmp_path / "workspace"
    warned = init(folder, str(base), settings=settings_of(folder, given)).warnings
    guesses = [text for text in warned if "its size alone" in text]
    assert len(guesses) == (said is not None)
    assert said is None or f": {said} from its size alone; `reviver doctor --facts FACTS` measures" in guesses[0]


def test_blocks_that_were_chosen_stay_when_init_is_run_again(tmp_path: Path) -> None:
    """Many hints end in `reviver init MODEL`, without the options of the first time."""
    base = make_checkpoint(tmp_path / "base")
    folder = tmp_path / "workspace"
    assert [
        one.name for one in init(folder, str(base), settings=settings_of(folder, {"model.layers": (2,)})).tensors
    ] == ["model.layers.2.mlp.down_proj.weight"]
    again = init(folder, str(base), settings=settings_of(folder, {}))
    assert again.did == ()
    assert [one.name for one in again.tensors] == ["model.layers.2.mlp.down_proj.weight"]
    assert not any("block" in text for text in again.warnings)
    moved = init(folder, str(base), settings=settings_of(folder, {"model.layers": (1,)}))
    assert [one.name for one in moved.tensors] == ["model.layers.1.mlp.down_proj.weight"]


def test_second_moments_of_other_text_are_told_and_can_be_had(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    folder, text = tmp_path / "workspace", tmp_path / "text.txt"
    text.write_text(
        "The river Ilva rises near Brundia .\n\nMara Venn plays the cello in Tessel .\n" * 40, encoding="utf-8"
    )
    plain, other = settings_of(folder, {}), settings_of(folder, {"moments.corpus": str(text)})
    init(folder, str(base), settings=plain)
    (kept,) = (folder / ".reviver" / "statistics").glob("*.safetensors")
    before = kept.read_bytes()
    told = [warning for warning in init(folder, str(base), settings=other).warnings if "second moment" in warning]
    assert len(told) == 1 and "text.txt" in told[0] and kept.read_bytes() == before
    shutil.rmtree(folder / ".reviver" / "statistics")
    for settings in (other, plain):
        report = init(folder, str(base), settings=settings)
        assert not any("second moment" in warning for warning in report.warnings)
    assert kept.read_bytes() != before, "and without a wish what is there does"
