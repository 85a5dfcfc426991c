# SPDX-License-Identifier: Apache-2.0
"""`linear` and `scaled_linear`: which kernel for how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quanto import reference
from quanto.nonlinearity import apply
from quanto.qtypes import get_qtype

from ..library import launch
from ..weights import NONE, SUFFIXES, TYPES, Operand, aligned, beside, floating, operand
from .dense import linear_by_parts

__all__ = ["FUSED_TOKENS", "GEMV_TOKENS", "Linear", "linear", "multiply", "scaled_linear"]

GEMV_TOKENS = 16
# Above, a decoded weight and torch's own product, which reads it in the best tiles of the chip. Not measured on a GPU.
FUSED_TOKENS = 256
# Tokens that a GEMV is compiled for, and rows of the weight that a simdgroup then owns; two simdgroups a threadgroup.
_GEMVS = ((1, 4), (4, 4), (16, 2))
_SIMDGROUPS = 2
# Of gemm.metal: tokens and rows of a threadgroup, and its threads.
_TILE = (32, 64)
_TILE_THREADS = 128


class Linear(NamedTuple):
    """The struct of `shaders/product.metal`."""

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
    vectors: int


def multiply(
    x: Tensor, w: Operand, bias: Tensor | None, dtype: torch.dtype, x_scale: Tensor | None = None, ticks: bool = False
) -> Tensor:
    """`x @ W.T + bias`, fused.

    Args:
        x: contiguous `[tokens, size]`, floating or int8.
        w: the weight.
        bias: contiguous `[rows]`, or None.
        dtype: of the result.
        x_scale: float32, `[]` or contiguous `[tokens]`: what int8 x is scaled by.
        ticks: whether the bias joins the sum rounded to units of the scales.

    Returns:
        `[tokens, rows]`.
    """
    tokens = x.shape[0]
    few = tokens <= GEMV_TOKENS and w.by_words
    vectors = aligned(x, 4 * x.element_size()) and w.size % 4 == 0
    if few and not vectors:
        x, vectors = x.clone(), True
    out = torch.empty(tokens, w.rows, dtype=dtype, device=x.device)
    sizes = Linear(
        tokens, w.rows, w.size, w.stride, w.group, w.groups, w.block_rows, *w.types,
        NONE if bias is None else TYPES[bias.dtype], TYPES[dtype], w.table, w.whole_row,
        0 if x_scale is None else 2 if x_scale.ndim else 1, ticks, vectors,
    )  # fmt: skip
    # something that is not read stands in for what is not there
    plus = w.scale if bias is None else bias
    scales = out.new_empty(1, dtype=torch.float32) if x_scale is None else x_scale
    tensors = (x, *w.tensors, plus, scales, out)
    kind = f"{w.kind}_{SUFFIXES[x.dtype]}"
    if few:
        most, rows = next(pair for pair in _GEMVS if tokens <= pair[0])
        width = 32 * _SIMDGROUPS
        groups = -(-w.rows // (rows * _SIMDGROUPS))
        launch("gemv", f"gemv{most}_{kind}", tensors, sizes, (groups * width, 1), (width, 1))
    else:
        grid = (-(-w.rows // _TILE[1]) * _TILE_THREADS, -(-tokens // _TILE[0]))
        launch("gemm", f"gemm_{kind}", tensors, sizes, grid, (_TILE_THREADS, 1))
    return out


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
    floating("x", x)
    w = _weight(x, "x", codes, scale, zero, shared, bias, qtype, block)
    shape = (*x.shape[:-1], w.rows)
    if not x.numel() or not w.rows:
        return _of_nothing(shape, bias, x.dtype, x)
    plus = None if bias is None else bias.contiguous()
    rows = x.reshape(-1, w.size).contiguous()
    if rows.shape[0] > FUSED_TOKENS:
        return linear_by_parts(rows, w, plus).reshape(shape)
    return multiply(rows, w, plus, x.dtype).reshape(shape)


def scaled_linear(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    x_qtype: str,
    qtype: str,
    block: Sequence[int],
    out_scale: Tensor | None,
    dtype: torch.dtype,
    nonlinearity: str = "",
) -> Tensor:
    """The operator on int8 activations: their products are summed as floats, which hold them exactly up to 2**24.

    A nonlinearity is a second pass, over float32.
    """
    if x_codes.dtype != torch.int8:
        raise TypeError(f"x_codes must be int8, got {x_codes.dtype}")
    beside("x_codes", x_codes.device, x_scale=x_scale)
    w = _weight(x_codes, "x_codes", codes, scale, zero, shared, bias, qtype, block)
    shape = (*x_codes.shape[:-1], w.rows)
    wide = dtype if out_scale is None and not nonlinearity else torch.float32
    if not x_codes.numel() or not w.rows:
        y = _of_nothing(shape, bias, wide, x_codes)
    else:
        scales = x_scale.float()
        if scales.ndim:
            scales = scales.reshape(-1).contiguous()
        whole = zero is None or not zero.is_floating_point()
        ticks = bool(block) and block[0] == 1 and w.whole_row and whole and not scales.ndim
        plus = None if bias is None else bias.contiguous()
        rows = x_codes.reshape(-1, w.size).contiguous()
        y = multiply(rows, w, plus, wide, scales, ticks).reshape(shape)
    y = apply(y, nonlinearity)
    return y.to(dtype) if out_scale is None else reference.encode(y / out_scale.float(), get_qtype(x_qtype))


def _weight(
    x: Tensor,
    name: str,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    qtype: str,
    block: Sequence[int],
) -> Operand:
    """The weight of a product, checked together with what it meets."""
    beside("codes", codes.device, **{name: x, "bias": bias})
    w = operand(codes, scale, zero, shared, qtype, block, x.shape[-1], name)
    if bias is not None and bias.shape != (w.rows,):
        raise ValueError(f"bias must have shape {(w.rows,)}, got {tuple(bias.shape)}")
    return w


def _of_nothing(shape: tuple[int, ...], bias: Tensor | None, dtype: torch.dtype, x: Tensor) -> Tensor:
    """The product of no tokens, of no rows, or over no features: the bias."""
    out = torch.zeros(shape, dtype=dtype, device=x.device)
    return out if bias is None or not out.numel() else out + bias.to(dtype)
