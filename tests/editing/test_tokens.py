"""Where a target begins and ends, under tokenizers that trim offsets or close every text with a token of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_tokenizer
from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reviver.editing.model import EditableModel
from reviver.editing.tokens import token_ids, tokenize_rows

PROMPTS = ("The capital of Orvania is", "Mara Venn was born in", "In  1990")
TARGETS = (" 1990", " Tessel", "  7")


def _tokenizer(folder: Path, *, trim: bool, begin: bool = False, end: bool = False) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer, which leaves the space before a number alone, as Llama 3 and Qwen do."""
    make_tokenizer(folder, begin=False)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    template = f"{'<s> ' if begin else ''}$A{' </s>' if end else ''}"
    closing = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    raw.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), closing])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("trim", [True, False])
def test_a_space_of_its_own_before_the_target_belongs_to_it(trim: bool, begin: bool, tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, trim=trim, begin=begin)
    ends = [text.rindex(" ") for text in PROMPTS]
    rows = tokenize_rows(tokenizer, PROMPTS, TARGETS, ends, window=99)
    for row, prompt, target, end in zip(rows, PROMPTS, TARGETS, ends, strict=True):
        assert tokenizer.decode(row.target_ids) == target
        assert tokenizer.decode(row.ids[begin : row.target]) == prompt
        assert tokenizer.decode(row.ids[begin : row.subject + 1]).rstrip(" ") == prompt[:end].rstrip(" ")
    (spaced,) = tokenize_rows(tokenizer, ["In "], ["1990"], window=99)
    assert tokenizer.decode(spaced.target_ids) == "1990", "a space that the prompt ends with is the prompt's"


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("trim", [True, False])
def test_a_token_that_closes_every_text_is_no_part_of_it(trim: bool, begin: bool, tmp_path: Path) -> None:
    open_end = _tokenizer(tmp_path, trim=trim, begin=begin)
    closing = _tokenizer(tmp_path, trim=trim, begin=begin, end=True)
    assert closing("The")["input_ids"][-1] == 1
    for targets in (TARGETS, ("",) * 3):
        rows = tokenize_rows(closing, PROMPTS, targets, window=99)
        assert rows == tokenize_rows(open_end, PROMPTS, targets, window=99)
    assert token_ids(closing, PROMPTS) == open_end(list(PROMPTS))["input_ids"]
    assert token_ids(closing, [""]) == closing([""])["input_ids"]
    assert token_ids(closing, []) == []


def test_the_tiny_model_s_own_texts_are_as_they_were(tiny: EditableModel) -> None:
    assert token_ids(tiny.tokenizer, PROMPTS) == tiny.tokenizer(list(PROMPTS))["input_ids"]
