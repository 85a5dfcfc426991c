# SPDX-License-Identifier: Apache-2.0
"""What peers do with a model: its linear layers but the head, and putting decoded weights into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Decode", "Peer", "count", "linears", "replace"]

#: quantizes a model in place with calibration tokens, int64 `[n, block]` each; returns stored bits per weight
Peer = Callable[[Any, list[Tensor]], float]

#: name of a layer and its weight `[out, in]` -> the weight as its codes say, and the bits that they take
Decode = Callable[[str, Tensor], tuple[Tensor, float]]

HEAD = "lm_head"


def linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that every row of the table quantizes."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and HEAD not in name:
            yield name, module


@torch.no_grad()
def replace(model: Any, decode: Decode) -> float:
    """Gives each layer the weight that its codes decode to; returns stored bits per weight."""
    bits = weights = 0.0
    for name, module in linears(model):
        decoded, stored = decode(name, module.weight.detach())
        if decoded.shape != module.weight.shape:
            raise ValueError(f"{name}: decoded to {tuple(decoded.shape)}, was {tuple(module.weight.shape)}")
        module.weight.copy_(decoded)
        bits, weights = bits + stored, weights + module.weight.numel()
    return bits / weights


def count(model: Any, bits: float, extra: float, group: int | None = None) -> float:
    """Stored bits per weight: `bits` for each, `extra` for each group of a row, or for each row."""
    total = weights = 0.0
    for _, module in linears(model):
        n = module.weight.numel()
        total, weights = total + n * bits + extra * n / (group or module.in_features), weights + n
    return total / weights
