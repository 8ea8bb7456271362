"""Small checkpoints and an independent arithmetic for the tests of checkpoint/: torch and Fractions, none of reviver's own code."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# Bits of the fraction, exponent of the smallest normal number, exponent of the largest binade.
PARAMETERS = {"BF16": (7, -126, 127), "F16": (10, -14, 15), "F32": (23, -126, 127)}
STORAGE = {"BF16": np.dtype("<u2"), "F16": np.dtype("<u2"), "F32": np.dtype("<u4")}
SIGN = {"BF16": 0x8000, "F16": 0x8000, "F32": 0x80000000}


class Counting:
    """A progress that counts."""

    def __init__(self) -> None:
        self.total: float | None = None
        self.done = 0.0

    @contextmanager
    def task(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Counting]:
        self.total = total
        yield self

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        pass


def value_of(bits: int, dtype: str) -> Fraction:
    """Decode the bits of a finite number by the definition of IEEE 754."""
    fraction_bits, least, _ = PARAMETERS[dtype]
    magnitude = bits & (SIGN[dtype] - 1)
    exponent, fraction = magnitude >> fraction_bits, magnitude & ((1 << fraction_bits) - 1)
    if exponent:
        value = Fraction((1 << fraction_bits) + fraction) * Fraction(2) ** (exponent - 1 + least - fraction_bits)
    else:
        value = Fraction(fraction) * Fraction(2) ** (least - fraction_bits)
    return -value if bits & SIGN[dtype] else value


def bits_of(value: Fraction, dtype: str) -> int | None:
    """Round a rational number once, half to even, by the definition of IEEE 754; None for an overflow. Zero is +0."""
    fraction_bits, least, largest = PARAMETERS[dtype]
    sign = SIGN[dtype] if value < 0 else 0
    value = abs(value)
    if value == 0:
        return 0
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, least)
    quanta = round(value / Fraction(2) ** (exponent - fraction_bits))  # Python rounds a Fraction half to even.
    magnitude = ((exponent - least) << fraction_bits) + quanta
    if magnitude >= (largest - least + 2) << fraction_bits:
        return None
    return sign | magnitude


def expected_bits(own: int, terms: list[Fraction], dtype: str) -> int | None:
    """What the definition of a version's bytes asks for at one entry with a finite base; None for an overflow."""
    delta = sum(terms, Fraction(0))
    if delta == 0:
        return own
    total = value_of(own, dtype) + delta
    rounded = bits_of(total, dtype)
    if rounded == 0 and total < 0:
        return SIGN[dtype]
    return rounded


def terms_at(deltas: list[Any], row: int, column: int) -> list[Fraction]:
    terms: list[Fraction] = []
    for delta in deltas:
        if hasattr(delta, "left"):
            terms += [
                Fraction(float(delta.left[row, index])) * Fraction(float(delta.right[index, column]))
                for index in range(delta.left.shape[1])
            ]
        else:
            terms.append(Fraction(float(delta.values[row, column])))
    return terms


def expected_matrix(bits: np.ndarray, deltas: list[Any], dtype: str) -> np.ndarray:
    result = np.empty_like(bits)
    for (row, column), own in np.ndenumerate(bits):
        value = expected_bits(int(own), terms_at(deltas, row, column), dtype)
        assert value is not None
        result[row, column] = value
    return result


def raw_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def tensor_from(raw: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=TORCH[dtype]).reshape(shape)


def header_file(table: object, buffer: bytes = b"") -> bytes:
    """Return the bytes of a safetensors file with this header, right or wrong."""
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(raw)) + raw + buffer


def make_checkpoint(
    folder: Path, *, dtype: str = "BF16", shards: int = 1, seed: int = 0, rows: int = 24, columns: int = 40
) -> dict[str, torch.Tensor]:
    """Make a checkpoint in the layout of `transformers`, with more beside the weights; return its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(4):
        for name, shape in (("mlp.down_proj.weight", (rows, columns)), ("input_layernorm.weight", (rows,))):
            tensors[f"model.layers.{layer}.{name}"] = (0.02 * torch.randn(shape, generator=generator)).to(TORCH[dtype])
    tensors["model.embed_tokens.weight"] = torch.randn((11, rows), generator=generator).to(TORCH[dtype])
    tensors["model.position_ids"] = torch.arange(5)
    tensors["model.empty"] = torch.zeros((0, 3))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            path = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: tensors[name] for name in names[shard::shards]}
            save_file(part, folder / path, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, path)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "LICENSE").write_text("licence\n")
    return tensors


def sample_delta(
    rows: int, columns: int, rank: int, *, seed: int = 0, scale: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    left = (scale * random.standard_normal((rows, rank))).astype(np.float32)
    right = (scale * random.standard_normal((rank, columns))).astype(np.float32)
    return left, right
