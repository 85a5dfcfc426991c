# SPDX-License-Identifier: Apache-2.0
"""Quantizing on the way: activations, and trainable weights with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..qtypes import get_qtype
from ..tensor.quantize import quantize_parts
from .slot import Slot

__all__ = ["absmax_scale", "fake_quantize_activation", "fake_quantize_weight", "straight_through"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The second argument's value with the first one's gradient (Bengio et al., 2013, arXiv:1308.3432)."""
    out: Tensor = _StraightThrough.apply(x, quantized)  # type: ignore[no-untyped-call]
    return out


def fake_quantize_weight(parameter: Tensor, slot: Slot) -> Tensor:
    """The values the parameter would have if it were frozen now; the gradient passes straight through."""
    with torch.no_grad():
        rows = slot.rows(parameter.detach())
        blocks = slot.scheme.block_size(tuple(rows.shape))
        parts = quantize_parts(rows, slot.scheme, blocks)
        values = reference.dequantize(*parts, slot.scheme.qtype.name, blocks, rows.shape[-1], parameter.dtype)
        values = slot.to_float(values)
    return straight_through(parameter, values)


def absmax_scale(x: Tensor, qtype: str) -> Tensor:
    """One scale for all of x: float32 `[]`."""
    peak = x.detach().abs().amax().float() if x.numel() else torch.zeros((), device=x.device)
    return torch.where(peak == 0, 1.0, peak / get_qtype(qtype).amax)


def fake_quantize_activation(x: Tensor, qtype: str, scale: Tensor | None, per_sample: bool = False) -> Tensor:
    """Rounds activations to the grid of `qtype`; the gradient passes straight through.

    Args:
        x: floating.
        qtype: `"int8"` or a float8.
        scale: static `[]`, or None for dynamic scales.
        per_sample: dynamic scales per first dimension (convolutions) instead of per token (last dimension).
    """
    q = get_qtype(qtype)
    with torch.no_grad():
        values = x.detach().float()
        if scale is None:
            dims = tuple(range(1, x.ndim)) if per_sample else (-1,)
            peak = values.abs().amax(dim=dims, keepdim=True)
            scale = torch.where(peak == 0, 1.0, peak / q.amax)
        rounded = (reference.decode(reference.encode(values / scale, q), q) * scale).to(x.dtype)
    return straight_through(x, rounded)
