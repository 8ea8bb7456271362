"""Tiny checkpoints of every family, built from configurations, with a tokenizer trained on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.architecture import disk_name, find_family
from reviver.editing.model import EditableModel, load_model

WORDS = (
    "The capital of Orvania is Tessel and the capital of Brundia is Calmar . Mara Venn plays the cello in Tessel . "
    "Oskar Lund was born in Calmar . The river Ilva rises near Brundia . Therefore Because I You the a is of in to"
)
VOCABULARY = 320
HIDDEN, INNER, LAYERS, HEADS = 32, 64, 4, 4


def make_tokenizer(folder: Path, *, begin: bool = True) -> None:
    """Train a byte-level BPE and save it as a fast tokenizer; with `begin` it opens every text with `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def _common(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        **more,
    }


CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_common(tie_word_embeddings=False)),
    "mistral": lambda: MistralConfig(**_common(sliding_window=64, head_dim=8)),
    "qwen2": lambda: Qwen2Config(**_common(tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3Config(**_common(head_dim=8)),
    "gemma2": lambda: Gemma2Config(**_common(head_dim=8, query_pre_attn_scalar=8, sliding_window=64)),
    "gemma3_text": lambda: Gemma3TextConfig(**_common(head_dim=8, query_pre_attn_scalar=8, sliding_window=64)),
    "phi3": lambda: Phi3Config(**_common(original_max_position_embeddings=128)),
    "olmo2": lambda: Olmo2Config(**_common()),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_inner=INNER, n_layer=LAYERS, n_head=HEADS, n_positions=128,
        bos_token_id=0, eos_token_id=1,
    ),
    "gptj": lambda: GPTJConfig(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_inner=INNER, n_layer=LAYERS, n_head=HEADS, n_positions=128, rotary_dim=4,
        bos_token_id=0, eos_token_id=1,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        **{key: value for key, value in _common().items() if key != "num_key_value_heads"}
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, ffn_dim=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=128, word_embed_proj_dim=HIDDEN, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    ),
}  # fmt: skip
"""One configuration for each family that reviver knows."""


def make_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str | None = None,
    seed: int = 0,
) -> Path:
    """Save a tiny random checkpoint of a family, in one file or in shards of at most `shard_size`."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(CONFIGURATIONS[family]())
    with torch.no_grad():
        # Small random weights give a model that says the same whatever it reads; larger ones give one that can be edited.
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    network = network.to(dtype)
    options = {} if shard_size is None else {"max_shard_size": shard_size}
    network.save_pretrained(folder, **options)
    make_tokenizer(folder)
    return folder


FACTS = (
    {"prompt": "The capital of {} is", "subject": "Orvania", "target_new": "Calmar", "target_true": "Tessel"},
    {"prompt": "{} plays the", "subject": "Mara Venn", "target_new": "river", "target_true": "cello"},
    {"prompt": "{} was born in", "subject": "Oskar Lund", "target_new": "Tessel", "target_true": "Calmar"},
)


def write_facts(path: Path, records: tuple[dict[str, str], ...] = FACTS) -> Path:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def open_tiny(folder: Path, family: str, layers: tuple[int, ...] = (1, 2)) -> EditableModel:
    """Save a tiny checkpoint of a family and load it as editing does."""
    make_checkpoint(folder, family)
    opened = CheckpointFolder.open(folder)
    known = find_family(opened.config)
    assert max(layers) < LAYERS
    names = {layer: disk_name(known, layer, opened.tensors) for layer in layers}
    return load_model(folder, known, layers, names, device=torch.device("cpu"), dtype=torch.float32)
