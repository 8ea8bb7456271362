"""Training of the small demo model: its tokenizer, its weights, and the folder they are saved in."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reviver.demo.recipe.corpus import documents, rows
from reviver.demo.recipe.prose import Prose, held_out_documents
from reviver.demo.recipe.relations import RELATIONS
from reviver.demo.recipe.world import World, fact_sentences, make_world, unmarked

BEGIN, END, PADDING = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the trained model is."""

    seed: int = 0
    steps: int = 1400
    rows_per_step: int = 16
    row_length: int = 256
    vocabulary: int = 2560
    hidden_size: int = 192
    mlp_size: int = 1024
    layers: int = 8
    heads: int = 6
    peak_rate: float = 2e-3
    weight_decay: float = 0.1
    compiled: bool = True


def train_tokenizer(world: World, settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on prose and on few mentions of each name.

    Names are shown seldom, so that they stay several tokens long: a subject that is one token of its own would be known
    without its context. Objects and templates are shown often, so that they come out short. A space is added before the
    first word, so that a name has the same tokens wherever it stands.
    """
    rng = random.Random(f"tokenizer {settings.seed}")
    prose = Prose(rng)
    names = map(unmarked, itertools.islice(fact_sentences(world, rng), 4 * len(world.facts)))
    words = [text for relation in RELATIONS for text in (*relation.objects, *relation.templates)]
    texts = [*(prose.document() for _ in range(12000)), *names, *(text.replace("{}", "") for text in words * 60)]
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
    forward = torch.compile(model) if settings.compiled else model
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    others = [weight for weight in model.parameters() if weight.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.peak_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    started = time.monotonic()
    average = 0.0
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        first = step * settings.rows_per_step
        last = first + settings.rows_per_step
        batch = data.ids[first:last].long()
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=batch, attention_mask=data.mask(first, last), labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        done = step + 1
        if done % 50 == 0 or done == settings.steps:
            report(f"step {done:5d}  loss {average:.3f}  {time.monotonic() - started:.0f} s")
        if done % 350 == 0 or done == settings.steps:
            with torch.no_grad():
                report(f"held-out perplexity {math.exp(model(input_ids=held_out, labels=held_out).loss.item()):.3f}")
        if save_every and done % save_every == 0 and done < settings.steps:
            save(model, tokenizer, folder / f"step-{done}")
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
