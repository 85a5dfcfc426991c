# SPDX-License-Identifier: Apache-2.0
"""Perplexity where what was read long ago comes from a quantized cache: 4 texts of 1024 tokens, 32 at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, QuantizedCache

__all__ = ["caches"]

CACHES: dict[str, dict[str, Any] | None] = {
    "float": None,
    "int8": {"nbits": 8},
    "float8": {"nbits": "float8"},
    "int4": {"nbits": 4},
    "int2": {"nbits": 2, "q_group_size": 32},
}


@torch.no_grad()
def caches(console: Console, folder: Path, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """Measures, prints a table and returns its rows.

    Args:
        console: where to.
        folder: of a causal language model.
        tokens: int64 `[4096]`.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch, step = tokens.view(4, 1024), 32
    rows: list[dict[str, Any]] = []
    for name, options in CACHES.items():
        cache = None if options is None else QuantizedCache("quanto", model.config, residual_length=64, **options)
        total, count = 0.0, 0
        for start in range(0, 1024, step):
            part = batch[:, start : start + step]
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            target = batch[:, start + 1 : start + step + 1]
            logits = out.logits[:, : target.shape[1]].flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, target.flatten(), reduction="sum").item()
            count += target.numel()
        rows.append({"cache": name, "perplexity": math.exp(total / count)})
    table = Table(
        "cache", "perplexity", "change", title="Perplexity by the cache of keys and values, 64 newest in float"
    )
    for row in rows:
        table.add_row(row["cache"], f"{row['perplexity']:.3f}", f"{row['perplexity'] / rows[0]['perplexity'] - 1:+.2%}")
    console.print(table)
    return rows
