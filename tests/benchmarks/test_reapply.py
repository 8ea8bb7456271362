"""A new release of the packaged model inherits the corrections of the last one."""

from __future__ import annotations

from pathlib import Path

import pytest
from further import Training
from patient import MODEL
from reapply import held_out_perplexity, make_first, measure_release, news

FACTS = 50


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_efficacy_on_a_further_trained_copy_is_as_on_the_first(tmp_path: Path) -> None:
    """One seed; another fact or two may fail, as among seeds of the facts."""
    first = make_first(tmp_path / "first", FACTS, 1)[0]
    release = measure_release(tmp_path / "same", tmp_path / "first", Training(), {}, 1)
    # Another model: all of its matrices moved, and it is as good.
    assert release["least_entries_changed_of_a_matrix"] > 0.9
    assert all(0.02 < change["relative_norm"] < 0.2 for change in release["edited_tensors"].values())
    assert release["perplexity"] < 1.05 * held_out_perplexity(MODEL)
    again = release["runs"][0]
    assert again["known"] == first["known"] == 0
    assert again["efficacy"] >= first["efficacy"] - 2 / FACTS
    assert again["paraphrase"] >= first["paraphrase"] - 0.06
    assert again["neighbors_kept"] >= first["neighbors_kept"] - 0.03


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_facts_that_the_release_has_learnt_are_told(tmp_path: Path) -> None:
    first = make_first(tmp_path / "first", FACTS, 1)[0]
    release = measure_release(tmp_path / "news", tmp_path / "first", Training(), news(FACTS, 1), 1)
    again = release["runs"][0]
    assert FACTS // 2 - 2 <= again["known"] <= FACTS // 2 + 2
    assert again["efficacy"] >= first["efficacy"] - 2 / FACTS
