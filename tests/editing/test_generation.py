"""What a model writes is the model's own, whatever its checkpoint wishes for chatting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import GenerationConfig

from reviver.editing.corpus import WrittenCorpus
from reviver.editing.generation import greedy, sample
from reviver.editing.model import EditableModel
from reviver.editing.prefixes import write_prefixes
from reviver.errors import NumericsError
from reviver.evaluation.fluency import fluency_scores
from reviver.evaluation.scores import answers, score_continuations

PROMPTS = ("The capital of Orvania is", "Mara Venn", "The")

WISHES = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[token] for token in range(2, 300, 3)],
    "suppress_tokens": list(range(3, 300, 3)),
    "min_p": 0.5,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.005,
    "top_p": 0.1,
    "top_k": 2,
    "temperature": 0.2,
    "num_beams": 3,
    "min_new_tokens": 5,
    "max_length": 7,
    "num_return_sequences": 3,
    "forced_eos_token_id": 40,
    "renormalize_logits": True,
}
"""What a checkpoint's `generation_config.json` may hold, one after the other and all at once."""


@contextmanager
def _wishing(model: EditableModel, wishes: dict[str, object]) -> Iterator[None]:
    own = model.network.generation_config
    wished = model.network.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)
    for name, value in wishes.items():
        setattr(wished, name, value)
    before = wished.to_dict()
    try:
        yield
        assert model.network.generation_config is wished and wished.to_dict() == before
    finally:
        model.network.generation_config = own


def _written(model: EditableModel) -> list[object]:
    corpus = WrittenCorpus(seed=3, length=10, rows=2)
    return [
        answers(model, PROMPTS, tokens=6),
        sample(model, [[5, 6], [7]], tokens=12, seed=1),
        sample(model, [[5, 6], [7]], tokens=12, seed=1, top_k=5),
        write_prefixes(model, count=3, tokens=6, seed=2),
        fluency_scores(model, PROMPTS, seed=4, tokens=12),
        next(corpus.batches(model, 0)),
    ]


@pytest.mark.parametrize("name", [*WISHES, "all"])
def test_what_a_checkpoint_wishes_for_changes_nothing(tiny: EditableModel, name: str) -> None:
    plain = _written(tiny)
    with _wishing(tiny, WISHES if name == "all" else {name: WISHES[name]}):
        assert _written(tiny) == plain


def test_greedy_decoding_is_the_most_probable_token_each_time(tiny: EditableModel) -> None:
    """Computed by the whole model, token by token; so it never contradicts the exact match."""
    with _wishing(tiny, WISHES):
        for prompt in PROMPTS:
            ids = tiny.tokenizer(prompt)["input_ids"]
            wanted = list(ids)
            for _ in range(6):
                with torch.no_grad():
                    wanted.append(int(tiny.network(torch.tensor([wanted])).logits[0, -1].argmax()))
            assert greedy(tiny, [ids], tokens=6) == [wanted[len(ids) :]]
            continuation = tiny.tokenizer.decode(wanted[len(ids) :])
            if tiny.tokenizer(prompt + continuation)["input_ids"] == wanted and continuation.startswith(" "):
                assert score_continuations(tiny, [(prompt, continuation.removeprefix(" "))])[0].exact


def test_an_answer_ends_where_the_model_ends_it(tiny: EditableModel) -> None:
    """Also where several tokens end a text, and without what fills the row up behind them."""
    ids = tiny.tokenizer(PROMPTS[0])["input_ids"]
    (whole,) = greedy(tiny, [ids], tokens=8)
    place = next(place for place in range(2, 8) if whole[place] not in whole[:place])
    with _wishing(tiny, {"eos_token_id": [1, whole[place]]}):
        others = [tiny.tokenizer(prompt)["input_ids"] for prompt in PROMPTS[1:]]
        assert greedy(tiny, [ids, *others], tokens=8)[0] == whole[:place]
        assert sample(tiny, [ids], tokens=30, seed=0)[0] and len(sample(tiny, [ids], tokens=30, seed=0)[0]) == 30


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_without_probabilities_nothing_is_drawn(
    tiny: EditableModel, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the draw itself would be an assertion of the device, after which nothing works there any more."""

    def never(*arguments: object, **named: object) -> object:
        raise AssertionError("drawn from what is not finite")

    monkeypatch.setattr(torch, "multinomial", never)
    with _spoilt(tiny, value):
        with pytest.raises(NumericsError, match="NaN or infinity"):
            sample(tiny, [[5, 6], [7]], tokens=3, seed=1)
        with pytest.raises(NumericsError, match="NaN or infinity"):
            fluency_scores(tiny, PROMPTS, seed=1, tokens=3)
        with pytest.raises(NumericsError, match="NaN or infinity"):
            answers(tiny, PROMPTS)


@contextmanager
def _spoilt(model: EditableModel, value: float) -> Iterator[None]:
    """Let the model give logits of this value for the second row of a batch, or the only one."""

    def spoil(_module: object, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        output[-1] = value
        return output

    handle = model.network.get_output_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()
