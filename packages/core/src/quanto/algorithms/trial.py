# SPDX-License-Identifier: Apache-2.0
"""Weights as they would come out of plain rounding, for algorithms that compare what to do before it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import reference
from ..nn.base import QModule
from ..quantizers import get_quantizer
from ..tensor.quantize import make_target

__all__ = ["rounded"]


def rounded(layer: QModule, rows: Tensor) -> Tensor:
    """Values for the weight of a linear layer, rounded to its scheme by absmax or min/max, which are fast.

    Args:
        layer: still floating.
        rows: `[out, in]` float32.
    """
    slot = layer._slots["weight"]
    target = make_target(slot.scheme, slot.scheme.block_size(tuple(rows.shape)), slot.dtype)
    target = replace(target, zero_dtype=torch.int8)
    p = get_quantizer("absmax" if target.symmetric else "minmax").parameters(rows, target)
    codes = reference.quantize(rows, *p, target.qtype.name, target.block_size)
    return reference.dequantize(codes, *p, target.qtype.name, target.block_size, rows.shape[1], torch.float32)
