# SPDX-License-Identifier: Apache-2.0
"""How many numbers a quantized weight stands for."""

from __future__ import annotations

import math

from torch import nn

from quanto.nn import QModule
from quanto.nn.slot import PARTS

__all__ = ["difference"]


def difference(model: nn.Module) -> int:
    """Elements of the float weights less those of the tensors in their place, over a model."""
    total, seen = 0, set()
    for module in model.modules():
        for leaf, slot in module._slots.items() if isinstance(module, QModule) else ():
            parts = [p for part in PARTS if (p := module._parameters.get(f"{leaf}_{part}")) is not None]
            if parts and id(parts[0]) not in seen:
                seen.add(id(parts[0]))
                total += math.prod(slot.shape) - sum(p.numel() for p in parts)
    return total
