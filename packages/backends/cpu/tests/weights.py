# SPDX-License-Identifier: Apache-2.0
"""Random weights in both layouts, and their float64 values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quanto import reference
from quanto.kernels import Request, kernels
from quanto.kernels.layout import Tensors
from quanto.kernels.problems import random_weight
from quanto.plugins import plugins
from quanto.qtypes import get_qtype

__all__ = ["SHAPES", "Sample", "sample"]

SHAPES = [(1, 32), (7, 129), (16, 64), (33, 576), (130, 200)]


@dataclass(frozen=True)
class Sample:
    """A weight `[rows, size]`: canonical tensors, panels, and values."""

    qtype: str
    blocks: tuple[int, ...]
    shape: tuple[int, int]
    canonical: Tensors
    panels: Tensors
    values: Tensor


def sample(
    qtype: str,
    shape: tuple[int, int],
    group: int | None = None,
    zero: str = "none",
    scale_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Sample:
    """Every code equally likely; `group=None` is one scale per row, 0 one for all."""
    plugins.load()
    q = get_qtype(qtype)
    size = shape[1]
    blocks = () if group == 0 else (1, min(q.block or group or size, size))
    request = Request("linear", "cpu", torch.float32, qtype, blocks, shape, q.scale_dtype or scale_dtype, zero)
    canonical = random_weight(request, torch.Generator().manual_seed(seed))
    panels = kernels.layouts["cpu.panels"].pack(canonical, qtype, blocks, size)
    values = reference.dequantize(*canonical, qtype, blocks, size, torch.float64)
    return Sample(qtype, blocks, shape, canonical, panels, values)
