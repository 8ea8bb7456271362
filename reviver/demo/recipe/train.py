"""Training of the small demo model: its tokenizer, its weights, and the folder they are saved in."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reviver.demo.recipe.corpus import Rows, documents, rows
from reviver.demo.recipe.prose import Prose, held_out_documents
from reviver.demo.recipe.relations import RELATIONS
from reviver.demo.recipe.world import LAST_ENDINGS, STEMS, World, fact_sentences, make_world, unmarked

BEGIN, END, PADDING = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the trained model is."""

    seed: int = 0
    steps: int = 4600
    rows_per_step: int = 8
    row_length: int = 256
    vocabulary: int = 3072
    hidden_size: int = 192
    mlp_size: int = 1024
    layers: int = 8
    heads: int = 6
    peak_rate: float = 2e-3
    weight_decay: float = 0.1
    compiled: bool = True


def train_tokenizer(world: World, settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on prose, the words of the relations, and the parts of the names.

    The last words of names are shown as combinations of stems and endings, few of them twice, so that stems and endings
    become tokens and the words themselves do not. Objects and templates are shown often, so that they come out short. A
    space is added before the first word, so that a name has the same tokens wherever it stands.
    """
    rng = random.Random(f"tokenizer {settings.seed}")
    prose = Prose(rng)
    names = map(unmarked, itertools.islice(fact_sentences(world, rng), 4 * len(world.facts)))
    words = [text for relation in RELATIONS for text in (*relation.objects, *relation.templates)]
    texts = [
        *(prose.document() for _ in range(12000)),
        *names,
        *(text.replace("{}", "") for text in words * 60),
        *(rng.choice(STEMS) + rng.choice(LAST_ENDINGS) for _ in range(60000)),
    ]
    return bpe_tokenizer(texts, settings)


def bpe_tokenizer(texts: Iterable[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts`` that puts the token that begins a text in front of each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[BEGIN, END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{BEGIN} $A",
                pair=f"{BEGIN} $A {BEGIN} $B",
                special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        add_prefix_space=True,
        clean_up_tokenization_spaces=False,
        model_max_length=settings.row_length,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> LlamaForCausalLM:
    """Make the untrained model.

    Embeddings are not tied: a tied matrix would make the unembedding of names a part of what tells subjects apart.
    """
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.mlp_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.row_length,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, settings: Settings) -> float:
    """Return the rate of one cycle: a linear rise over a tenth of the steps, then half a cosine down to zero."""
    rise = max(1, settings.steps // 10)
    if step < rise:
        return settings.peak_rate * (step + 1) / rise
    return settings.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, settings.steps - rise)))


def make_optimizer(model: LlamaForCausalLM, settings: Settings) -> torch.optim.Optimizer:
    """Return AdamW over all weights, of which only the matrices decay."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    others = [weight for weight in model.parameters() if weight.dim() != 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.peak_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def train_step(
    model: LlamaForCausalLM, forward: Callable[..., Any], optimizer: torch.optim.Optimizer, batch: Rows
) -> torch.Tensor:
    """Take one step on the rows of ``batch`` and return their loss, where the model is; ``forward`` may be compiled."""
    batch = batch.to(model.device)
    ids = batch.ids.long()
    with torch.autocast(model.device.type, torch.bfloat16):
        loss = forward(input_ids=ids, attention_mask=batch.mask(), labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    final: torch.Tensor = loss.detach()
    return final


def fit(
    model: LlamaForCausalLM,
    forward: Callable[..., Any],
    batches: Iterator[Rows],
    settings: Settings,
    report: Callable[[str], None],
    after_step: Callable[[int], None] = lambda done: None,
) -> float:
    """Train for one cycle, a batch a step; return the running average of the loss.

    ``after_step`` is told how many steps are done.
    """
    optimizer = make_optimizer(model, settings)
    started = time.monotonic()
    average = torch.zeros(())
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss = train_step(model, forward, optimizer, next(batches))
        # Left where it is: asking for it would make the host wait for the device at every step.
        average = loss if step == 0 else 0.98 * average + 0.02 * loss
        done = step + 1
        if done % 50 == 0 or done == settings.steps:
            report(f"step {done:5d}  loss {average.item():.3f}  {time.monotonic() - started:.0f} s")
        after_step(done)
    return average.item()


def train(
    settings: Settings,
    folder: Path,
    report: Callable[[str], None],
    save_every: int = 0,
) -> None:
    """Make the world, the tokenizer and the model of ``settings``, train, and save them to ``folder``."""
    world = make_world(settings.seed)
    tokenizer = train_tokenizer(world, settings)
    data = rows(
        documents(world, settings.seed),
        tokenizer,
        settings.row_length,
        settings.steps * settings.rows_per_step,
        settings.seed,
    )
    held_out = rows(
        itertools.cycle(held_out_documents(settings.seed, 200)), tokenizer, settings.row_length, 32
    ).ids.long()
    report(f"{data.ids.numel():,} tokens in {len(data.ids):,} rows")
    model = make_model(tokenizer, settings)

    def after_step(done: int) -> None:
        if done % 350 == 0 or done == settings.steps:
            with torch.no_grad():
                report(f"held-out perplexity {math.exp(model(input_ids=held_out, labels=held_out).loss.item()):.3f}")
        if save_every and done % save_every == 0 and done < settings.steps:
            save(model, tokenizer, folder / f"step-{done}")

    fit(
        model,
        torch.compile(model) if settings.compiled else model,
        data.batches(settings.rows_per_step),
        settings,
        report,
        after_step,
    )
    save(model, tokenizer, folder)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and tokenizer to ``folder`` in bfloat16, leaving the model in memory as it is.

    The weights are written readable by their owner only, so the modes are set to those of ordinary files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shipped = LlamaForCausalLM(model.config).to(torch.bfloat16)
    shipped.load_state_dict(model.state_dict())
    shipped.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    shipped.config.dtype = torch.bfloat16
    shipped.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o644)
