# SPDX-License-Identifier: Apache-2.0
"""Functions caught above autograd, where they still are what the user wrote: `F.linear`, `F.embedding`, `q[i] = x`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from .qtensor import QTensor

__all__ = ["FUNCTIONS", "linear", "refuse_edit"]

_any_autocast = torch._C._is_any_autocast_enabled


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`F.linear` with a quantized weight, quantized activations, or both; NotImplemented if the weight is floating."""
    if not isinstance(weight, QTensor) or weight.ndim != 2 or _trains(weight):
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
    if _any_autocast() and torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))  # autocast itself acts below this function
    return ops.linear(x, w.weight(), bias)


def _trains(weight: QTensor) -> bool:
    """Whether a gradient of the weight is wanted: torch's own formula gives it, from the values."""
    return weight.requires_grad and torch.is_grad_enabled()


def is_activation(x: QTensor) -> bool:
    """Whether the tensor is what `scaled_linear` takes: 8 bits, one scale per tensor or per token."""
    if not x.settled or x.qtype.bits != 8 or x.zero_point is not None or x.global_scale is not None:
        return False
    blocks = x.block_size
    return not blocks or (all(b == 1 for b in blocks[:-1]) and blocks[-1] >= x.columns)


def _embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(weight, QTensor) or not weight.settled or weight.ndim != 2 or _trains(weight):
        return NotImplemented
    if args or kwargs.get("max_norm"):
        return NotImplemented
    return ops.embedding(indices, weight.weight(), weight.dtype)


def refuse_edit(operation: str, q: QTensor) -> NoReturn:
    """Raises the error of an edit in place."""
    raise RuntimeError(
        f"{operation} would edit a quantized tensor ({q.qtype.name}) in place, and the edit would be lost. "
        "Edit the float model before freezing, or quanto.dequantize(model) first."
    )


def _set_item(x: Tensor, index: Any, value: Any) -> Any:
    """torch takes a view of the item and writes into that: a dequantized copy, where the view is of half a byte."""
    return refuse_edit("an assignment to items", x) if isinstance(x, QTensor) else NotImplemented


def _set_data(x: Tensor, value: Any) -> Any:
    """torch would exchange what lies below the codes and scales, which stay."""
    return refuse_edit("an assignment to data", x) if isinstance(x, QTensor) else NotImplemented


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    torch._C._nn.linear: linear,
    F.embedding: _embedding,
    Tensor.__setitem__: _set_item,
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
}
