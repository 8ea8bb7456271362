"""What the last edited block cannot write, no target asks for: the way from a matrix's protected outputs to closed states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import open_tiny

from reviver.editing.keys import closed_directions, through_post_norm
from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3_text", "olmo2"])
def test_what_stays_out_of_closed_directions_can_be_written_in_the_open(family: str, tmp_path: Path) -> None:
    """Also behind a norm with gains of all sizes and signs, one of them zero: the write that a residual asks for keeps out of U."""
    model = open_tiny(tmp_path / "base", family)
    layer = model.layers[-1]
    width = model.outer_width(layer)
    generator = torch.Generator().manual_seed(1)
    norm = model.post_norm(layer)
    if norm is not None:
        gain_O = torch.randn(width, generator=generator).exp() * torch.randn(width, generator=generator).sign()
        gain_O[3] = 0.0
        # Gemma stores what is added to one.
        norm.weight.data.copy_(gain_O - 1 if family.startswith("gemma") else gain_O)
    output_OK, _ = torch.linalg.qr(torch.randn(width, 5, generator=generator, dtype=torch.float64))
    closed_OC = closed_directions(model, layer, output_OK).double()
    torch.testing.assert_close(closed_OC.T @ closed_OC, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-5)
    shift_ON = torch.randn(width, 7, generator=generator, dtype=torch.float64)
    shift_ON -= closed_OC @ (closed_OC.T @ shift_ON)
    key_IN = torch.randn(model.inner_width(layer), 7, generator=generator)
    written_ON = through_post_norm(model, layer, shift_ON.float(), key_IN).double()
    assert (output_OK.T @ written_ON).norm() <= 1e-4 * written_ON.norm()
    free_ON = through_post_norm(model, layer, torch.randn(width, 7, generator=generator), key_IN).double()
    assert (output_OK.T @ free_ON).norm() > 1e-2 * free_ON.norm()


def test_what_can_be_written_takes_where_the_filter_would_cut_it_off(tmp_path: Path) -> None:
    """The packaged model under a wide filter: a third of its directions protected, and most facts take all the same."""
    facts = tmp_path / "facts.jsonl"
    lines = (ROOT / "edits" / "world.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    facts.write_text("".join(lines[40:60]), encoding="utf-8")
    given: dict[str, object] = {"apply.rank": 64, "moments.tokens": 8192}
    init(tmp_path, str(ROOT / "reviver" / "demo" / "model"), settings=Settings.load(tmp_path, given))
    taken = {}
    for name in ("revive", "constrained"):
        settings = Settings.load(tmp_path, {**given, "apply.filter": name})
        made = apply(tmp_path, ApplyRequest(facts=facts, parent="base", checkpoint=False), settings=settings)
        assert made.summary is not None and made.summary.efficacy is not None
        taken[name] = made.summary.efficacy
    assert taken["constrained"] >= taken["revive"] + 0.25, taken
