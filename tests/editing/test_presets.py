"""A published preset is for the model it was published for, and for no other of like shape."""

from __future__ import annotations

import pytest

from reviver.editing.presets import find_preset

LLAMA = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096}


@pytest.mark.parametrize(
    ("config", "inner", "name"),
    [
        ({**LLAMA, "vocab_size": 128256}, 14336, "llama-3-8b"),
        ({**LLAMA, "vocab_size": 128320}, 14336, "llama-3-8b"),
        ({**LLAMA, "vocab_size": 32000}, 11008, "derived"),
        ({**LLAMA, "vocab_size": 64000}, 11008, "derived"),
        ({**LLAMA, "vocab_size": 32000}, 14336, "derived"),
        (LLAMA, 14336, "derived"),
        ({**LLAMA, "model_type": "mistral", "vocab_size": 32768}, 14336, "mistral-7b"),
        ({"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584}, 18944, "qwen2.5-7b"),
        ({"model_type": "gptj", "n_layer": 28, "n_embd": 4096}, 16384, "gpt-j-6b"),
        ({"model_type": "gpt2", "n_layer": 48, "n_embd": 1600}, 6400, "gpt2-xl"),
    ],
)
def test_presets_by_size(config: dict[str, object], inner: int, name: str) -> None:
    preset = find_preset(config, inner)
    assert (preset.name, preset.derived) == (name, name == "derived")
