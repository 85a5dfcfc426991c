# SPDX-License-Identifier: Apache-2.0
"""The models that are decoded, one for each scheme: the demo's, one in a folder, or a random one of a larger shape."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quanto

__all__ = ["SCHEMES", "SHAPES", "bytes_per_token", "dtype_of", "source", "subject"]

SCHEMES: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "bfloat16": None,
    "int8": {"weights": "int8"},
    "int4 g128": {"weights": "int4", "group_size": 128},
    "int8, bfloat16": {"weights": "int8"},
    "int4 g128, bfloat16": {"weights": "int4", "group_size": 128},
}
#: random weights of these shapes: decoding takes as long as with trained ones.
SHAPES = {
    "llama-1b": {  # TinyLlama-1.1B's
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
}


def dtype_of(scheme: str) -> torch.dtype:
    """Of the activations."""
    return torch.bfloat16 if "bfloat16" in scheme else torch.float32


def source(name: str | None) -> str | Path:
    """A name of `SHAPES`, or the folder of a model: the demo's if none is named."""
    if name in SHAPES:
        return str(name)
    if name is not None:
        return Path(name)
    _examples()
    from demo.model import fetch

    return fetch()


def _examples() -> None:
    folder = str(Path(__file__).parents[2] / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _load(place: str | Path, dtype: torch.dtype) -> Any:
    if isinstance(place, Path):
        _examples()
        from demo.model import load

        return load(place, dtype)
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[place], tie_word_embeddings=False)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def subject(place: str | Path, scheme: str, head: bool, join: bool) -> Any:
    """The model under a scheme.

    Args:
        place: see `source`.
        scheme: a name of `SCHEMES`.
        head: whether head and embedding are quantized too; otherwise they stay as they are.
        join: whether layers that read the same input run as one.
    """
    model = _load(place, dtype_of(scheme))
    if head and model.config.tie_word_embeddings:  # as two modules each can be quantized
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    given = SCHEMES[scheme]
    if given is not None:
        exclude = [] if head else ["lm_head", "model.embed_tokens"]
        quanto.freeze(quanto.quantize(model, exclude=exclude, **given))
        if join:
            quanto.join(model)
    return model


def bytes_per_token(model: nn.Module) -> int:
    """What every token reads: the weights of all linear layers, scales included; of the embedding one row."""
    linear = [m for m in model.modules() if hasattr(m, "in_features") and hasattr(m, "out_features")]
    return sum(t.nbytes for module in linear for t in (*module.parameters(), *module.buffers()))
