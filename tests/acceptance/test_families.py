"""Every family through init, apply and checkout: what transformers loads is what was edited in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CONFIGURATIONS, make_checkpoint, write_facts
from transformers import AutoModelForCausalLM, AutoTokenizer

from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.checkout import checkout
from reviver.verbs.init import init
from reviver.verbs.verify import verify


@pytest.mark.parametrize("family", sorted(CONFIGURATIONS))
def test_the_checkpoint_is_what_was_edited(family: str, tmp_path: Path, fast_workspace: Path) -> None:
    base = make_checkpoint(tmp_path / "base", family)
    facts = write_facts(tmp_path / "facts.jsonl")
    settings = Settings.load(fast_workspace, {})
    prepared = init(fast_workspace, str(base), settings=settings)
    report = apply(fast_workspace, ApplyRequest(facts=facts), settings=settings)
    checkout(fast_workspace, "v1", output=tmp_path / "out")

    assert {tensor.name for tensor in prepared.tensors} == {tensor.name for tensor in report.tensors}
    patch = load_file(fast_workspace / "edits" / "v1" / "patch.safetensors")
    shipped = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    in_memory = AutoModelForCausalLM.from_pretrained(base)
    before = AutoModelForCausalLM.from_pretrained(base)
    parameters = dict(in_memory.named_parameters())
    for tensor in report.tensors:
        delta = patch[f"{tensor.name}.left"].double() @ patch[f"{tensor.name}.right"].double()
        (name,) = (known for known in parameters if known.endswith(tensor.name) or tensor.name.endswith(known))
        assert delta.norm() > 0
        with torch.no_grad():
            parameters[name].copy_((parameters[name].double() + delta).float())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = tokenizer("The capital of Orvania is Calmar", return_tensors="pt")
    inputs = {"input_ids": rows["input_ids"]}
    with torch.no_grad():
        logits, expected, old = (model(**inputs).logits for model in (shipped, in_memory, before))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert (logits - old).abs().max() > 1e-3
    # The edit did what it was asked for, more or less: no result became less probable on the whole.
    gain = sum(one.after.probability_new - one.before.probability_new for one in report.results)
    assert gain > 0
    assert verify(fast_workspace).ok
