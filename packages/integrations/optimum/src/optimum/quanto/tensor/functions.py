# SPDX-License-Identifier: Apache-2.0
"""Functions caught above autograd: `F.linear` goes to quanto's kernels, `torch.equal` compares what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quanto import ops
from quanto.weight import Weight

from .kernel import codes_of, of_rows
from .qbits import WeightQBitsTensor
from .qbytes import ActivationQBytesTensor, WeightQBytesTensor
from .qtensor import QTensor

__all__ = ["FUNCTIONS", "core_weight"]


def core_weight(weight: WeightQBytesTensor) -> Weight:
    """The same tensors as quanto's operators take them."""
    return of_rows(weight._data, weight._scale, weight._scale.dtype)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`F.linear` where the weight, the input or both are quantized."""
    if not isinstance(weight, QTensor):
        return NotImplemented
    trains = torch.is_grad_enabled() and (weight.requires_grad or (input.requires_grad and isinstance(input, QTensor)))
    w = None if trains else _operand(weight)
    if w is None:
        x = input.dequantize() if isinstance(input, QTensor) else input
        return F.linear(x, weight.dequantize(), bias)
    if not isinstance(input, ActivationQBytesTensor):
        return ops.linear(input, w, bias)
    if input.ndim < 2 or input._scale.numel() != 1:
        return ops.linear(input.dequantize(), w, bias)
    codes, scale = codes_of(input._data.contiguous()), input._scale.reshape(())
    return ops.scaled_linear(codes, scale, w, bias, input.qtype.core, None, input.dtype)


def _operand(weight: QTensor) -> Weight | None:
    """The weight as operators take it; None if it has to be dequantized."""
    if isinstance(weight, WeightQBitsTensor):
        return weight.operand
    return core_weight(weight) if isinstance(weight, WeightQBytesTensor) and _by_rows(weight) else None


def _by_rows(weight: WeightQBytesTensor) -> bool:
    return weight.axis in (0, None) and weight.ndim == 2 and weight._data.is_contiguous()


def equal(input: Tensor, other: Tensor) -> Any:
    """`torch.equal`."""
    if isinstance(input, QTensor) and isinstance(other, QTensor):
        return input.equal(other)
    return NotImplemented


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    torch._C._nn.linear: linear,
    torch.equal: equal,
}
