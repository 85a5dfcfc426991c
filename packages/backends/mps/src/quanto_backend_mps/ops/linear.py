# SPDX-License-Identifier: Apache-2.0
"""`linear`: which kernel for how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..library import launch
from ..weights import NONE, SUFFIXES, TYPES, Operand, aligned, operand
from .dense import linear_by_parts

__all__ = ["GEMV_TOKENS", "Linear", "gemv", "linear", "multiply"]

GEMV_TOKENS = 16
# Tokens that a GEMV is compiled for, and rows of the weight that a simdgroup then owns; two simdgroups a threadgroup.
_GEMVS = ((1, 4), (4, 4), (16, 2))
_SIMDGROUPS = 2


class Linear(NamedTuple):
    """The struct of `shaders/gemv.metal`."""

    tokens: int
    rows: int
    size: int
    stride: int
    group: int
    groups: int
    block_rows: int
    scale_type: int
    zero_type: int
    bias_type: int
    out_type: int
    table: int
    whole_row: int
    x_scale: int
    ticks: int


def _sizes(x: Tensor, w: Operand, bias: Tensor | None, out: Tensor, x_scale: Tensor | None, ticks: bool) -> Linear:
    bias_type = NONE if bias is None else TYPES[bias.dtype]
    kind = 0 if x_scale is None else 2 if x_scale.ndim else 1
    return Linear(
        x.shape[0], w.rows, w.size, w.stride, w.group, w.groups, w.block_rows, *w.types, bias_type, TYPES[out.dtype],
        w.table, w.whole_row, kind, ticks,
    )  # fmt: skip


def gemv(
    x: Tensor, w: Operand, bias: Tensor | None, out: Tensor, x_scale: Tensor | None = None, ticks: bool = False
) -> None:
    """Starts the kernel for 1 to 16 tokens on contiguous tensors, a weight `by_words` and x at whole vectors."""
    tokens, rows = next(pair for pair in _GEMVS if x.shape[0] <= pair[0])
    groups = -(-w.rows // (rows * _SIMDGROUPS))
    width = 32 * _SIMDGROUPS
    tensors = (x, *w.tensors, *_rest(w, bias, x_scale), out)
    name = f"gemv{tokens}_{w.kind}_{SUFFIXES[x.dtype]}"
    sizes = [int(n) for n in _sizes(x, w, bias, out, x_scale, ticks)]
    launch("gemv", name, tensors, sizes, (groups * width, 1, 1), (width, 1, 1))


def _rest(w: Operand, bias: Tensor | None, x_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bias and scales of the tokens; something else, which is not read, where they are not there."""
    return w.scale if bias is None else bias, w.scale.new_empty(1, dtype=torch.float32) if x_scale is None else x_scale


def multiply(
    x: Tensor, w: Operand, bias: Tensor | None, dtype: torch.dtype, x_scale: Tensor | None = None, ticks: bool = False
) -> Tensor:
    """`x @ W.T + bias`, `[tokens, rows]` of `dtype`, for contiguous x `[tokens, size]` and bias."""
    if x.shape[0] <= GEMV_TOKENS and w.by_words:
        out = torch.empty(x.shape[0], w.rows, dtype=dtype, device=x.device)
        gemv(x if aligned(x, 4 * x.element_size()) else x.clone(), w, bias, out, x_scale, ticks)
        return out
    return linear_by_parts(x, w, bias)


def linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    qtype: str,
    block: Sequence[int],
) -> Tensor:
    """The operator; any number of tokens."""
    if x.dtype not in TYPES or not x.is_floating_point():
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and tensor.device != codes.device:
            raise ValueError(f"{name} is on {tensor.device}, codes is on {codes.device}")
    size = x.shape[-1]
    w = operand(codes, scale, zero, shared, qtype, block, size)
    if bias is not None and bias.shape != (w.rows,):
        raise ValueError(f"bias must have shape {(w.rows,)}, got {tuple(bias.shape)}")
    shape = (*x.shape[:-1], w.rows)
    tokens = x.numel() // size if size else 0
    if not tokens or not w.rows:
        out = x.new_zeros(shape)
        return out if bias is None or not out.numel() else out + bias.to(x.dtype)
    plus = None if bias is None else bias.contiguous()
    return multiply(x.reshape(tokens, size).contiguous(), w, plus, x.dtype).reshape(shape)
