# SPDX-License-Identifier: Apache-2.0
"""The gradient of `quanto.ops.grouped_linear`, whichever kernel computed it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .kernels import kernels
from .weight import CANONICAL, Weight, make_key

__all__ = ["GroupedLinear", "expert"]


def expert(w: Weight, index: int) -> Weight:
    """The weight `[out, in]` of one expert of a canonical weight `[experts, out, in]`; nothing is copied."""
    block = index // w.block_size[0] if w.block_size else ...
    scale, zero = (None if t is None else t[block] for t in (w.scale, w.zero_point))
    assert scale is not None
    block_size = w.block_size[1:]
    key = make_key(w.qtype, block_size, (w.codes.shape[1], w.size), scale, zero)
    return Weight(w.codes[index], scale, zero, w.global_scale, w.qtype, block_size, w.size, key)


def canonical(w: Weight) -> Weight:
    """A weight in the layout of files, copied if it lay in a kernel's own."""
    layout = w.key.rpartition(";")[2]
    if layout == CANONICAL:
        return w
    tensors = kernels.layouts[layout].unpack(w[:4], w.qtype, w.block_size, w.size)
    return Weight(*tensors, *w[4:])


class GroupedLinear(torch.autograd.Function):
    """Rows `offsets[e-1]:offsets[e]` of x meet expert e; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, offsets: Tensor, *weight: Any) -> Tensor:
        """The operator by the best kernel."""
        w = Weight(*weight)
        ctx.save_for_backward(offsets, *w[:4])
        ctx.constants = w[4:]
        ctx.bias = None if bias is None else bias.dtype
        ctx.rows = x.shape
        return ops.call_grouped_linear(x, w, bias, offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and bias; one product for each expert that has rows."""
        offsets, *tensors = ctx.saved_tensors
        w = canonical(Weight(*tensors, *ctx.constants))
        needs_x, needs_bias = ctx.needs_input_grad[0], ctx.bias is not None and ctx.needs_input_grad[1]
        grad_x = grad.new_zeros(ctx.rows) if needs_x else None
        grad_bias = grad.new_zeros(w.codes.shape[:2], dtype=ctx.bias) if needs_bias else None
        start = 0
        for index, end in enumerate(offsets.tolist()):
            if end > start:
                rows = grad[start:end]
                if grad_x is not None:
                    grad_x[start:end] = ops.linear_input_grad(rows, expert(w, index))
                if grad_bias is not None:
                    grad_bias[index] = rows.sum(0)
            start = max(start, end)
        return grad_x, grad_bias, *(None,) * (1 + len(Weight._fields))
