# SPDX-License-Identifier: Apache-2.0
"""Functions caught above autograd, where they still are what the user wrote: `F.linear` and `F.embedding`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from .qtensor import QTensor

__all__ = ["FUNCTIONS", "linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`F.linear` with a quantized weight, quantized activations, or both; NotImplemented if the weight is floating."""
    if not isinstance(weight, QTensor) or weight.ndim != 2:
        return NotImplemented
    w = weight if weight.settled else None
    if w is None:
        return NotImplemented
    if isinstance(bias, QTensor):
        bias = bias.dequantize()
    if isinstance(x, QTensor):
        if not is_activation(x):
            x = x.dequantize()
        else:
            return ops.scaled_linear(x.codes, x.scale, w.weight(), bias, x.qtype.name, None, x.dtype)
    return ops.linear(x, w.weight(), bias)


def is_activation(x: QTensor) -> bool:
    """Whether the tensor is what `scaled_linear` takes: 8 bits, one scale per tensor or per token."""
    if not x.settled or x.qtype.bits != 8 or x.zero_point is not None or x.global_scale is not None:
        return False
    blocks = x.block_size
    return not blocks or (all(b == 1 for b in blocks[:-1]) and blocks[-1] >= x.columns)


def _embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(weight, QTensor) or not weight.settled or weight.ndim != 2 or args or kwargs.get("max_norm"):
        return NotImplemented
    return ops.embedding(indices, weight.weight(), weight.dtype)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    torch._C._nn.linear: linear,
    F.embedding: _embedding,
}
