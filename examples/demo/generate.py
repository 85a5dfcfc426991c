# SPDX-License-Identifier: Apache-2.0
"""Greedy generation with a key-value cache, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

__all__ = ["Generation", "greedy"]


@dataclass(frozen=True)
class Generation:
    """New tokens, and how many per second the median step makes once the prompt is read."""

    tokens: list[int]
    per_second: float


def greedy(model: Any, prompt: Tensor, count: int, *, seconds: float = 10.0) -> Generation:
    """Continues a prompt with the likeliest token each time; an end-of-text token doesn't stop it.

    Args:
        model: a causal language model of transformers.
        prompt: int64 `[n]`.
        count: how many tokens to generate, at least 4.
        seconds: where the model is slow, generation ends after this time with at least 4 tokens.
    """
    if count < 4:
        raise ValueError(f"count must be at least 4, got {count}")
    tokens: list[int] = []
    steps: list[float] = []
    with torch.no_grad():
        output = model(input_ids=prompt.unsqueeze(0), use_cache=True)
        tokens.append(int(output.logits[0, -1].argmax()))
        while len(tokens) < count and (len(tokens) < 4 or sum(steps) < seconds):
            start = time.perf_counter()
            output = model(
                input_ids=torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )
            tokens.append(int(output.logits[0, -1].argmax()))
            steps.append(time.perf_counter() - start)
    # The median leaves out the first steps, in which a kernel is chosen and checked, and what the machine did besides.
    return Generation(tokens, 1 / median(steps))
