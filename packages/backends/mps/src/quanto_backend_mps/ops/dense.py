# SPDX-License-Identifier: Apache-2.0
"""`dequantize`, `embedding`, `linear_input_grad`, and the linear layer of many tokens: decode a part, multiply it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..library import launch
from ..weights import SUFFIXES, Operand, beside, floating, operand

__all__ = ["Dense", "decoded", "dequantize", "embedding", "linear_by_parts", "linear_input_grad"]

# Elements decoded at a time: 64 MiB of half precision, however large the weight is. Not measured on a GPU yet.
_PART = 1 << 25
_GROUP = (32, 4)


class Dense(NamedTuple):
    """The struct of `shaders/dense.metal`."""

    rows: int
    table_rows: int
    size: int
    stride: int
    first: int
    columns: int
    group: int
    groups: int
    block_rows: int
    scale_type: int
    zero_type: int
    table: int


def _dense(w: Operand, rows: int, first: int, columns: int) -> Dense:
    return Dense(
        rows, w.rows, w.size, w.stride, first, columns, w.group, w.groups, w.block_rows, *w.types, w.table
    )  # fmt: skip


def decoded(w: Operand, dtype: torch.dtype, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """The values of some rows (from a multiple of `block_rows` on) and some columns (from a multiple of 8 on)."""
    first, last = rows
    out = torch.empty(last - first, columns[1] - columns[0], dtype=dtype, device=w.codes.device)
    if not out.numel():
        return out
    codes, scale, zero = w.tensors
    if first:
        codes = codes[first:]
        if scale.ndim:
            scale, zero = scale[first // w.block_rows :], zero[first // w.block_rows :]
    sizes = _dense(w, out.shape[0], columns[0], out.shape[1])._replace(table_rows=codes.shape[0])
    threads = (-(-out.shape[1] // 8), out.shape[0])
    launch("dense", f"dequantize_{w.kind}_{SUFFIXES[dtype]}", (codes, scale, zero, out), sizes, threads, _GROUP)
    return out


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: Sequence[int],
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    """The operator, for weights of two dimensions."""
    w = operand(codes, scale, zero, shared, qtype, block, size, "the weight")
    return decoded(w, dtype, (0, w.rows), (0, size))


def embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: Sequence[int],
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    """The operator. An index that the table does not have gives a row of NaN: looking costs a synchronization."""
    beside("codes", codes.device, indices=indices)
    w = operand(codes, scale, zero, shared, qtype, block, size, "the weight")
    rows = indices.reshape(-1).to(torch.int64).contiguous()
    out = torch.empty(rows.shape[0], size, dtype=dtype, device=codes.device)
    if out.numel():
        sizes = _dense(w, rows.shape[0], 0, size)
        threads = (-(-size // 8), rows.shape[0])
        launch("dense", f"embedding_{w.kind}_{SUFFIXES[dtype]}", (rows, *w.tensors, out), sizes, threads, _GROUP)
    return out.reshape(*indices.shape, size)


def linear_by_parts(x: Tensor, w: Operand, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` for contiguous x `[tokens, size]`: rows of W are decoded, at most `_PART` elements at a time."""
    step = max(_PART // max(w.size, 1) // w.block_rows, 1) * w.block_rows
    plus = None if bias is None else bias.to(x.dtype)
    if step >= w.rows:
        return torch.nn.functional.linear(x, decoded(w, x.dtype, (0, w.rows), (0, w.size)), plus)
    out = torch.empty(x.shape[0], w.rows, dtype=x.dtype, device=x.device)
    for first in range(0, w.rows, step):
        last = min(first + step, w.rows)
        part = decoded(w, x.dtype, (first, last), (0, w.size))
        out[:, first:last] = torch.nn.functional.linear(x, part, None if plus is None else plus[first:last])
    return out


def linear_input_grad(
    grad: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: Sequence[int],
    size: int,
) -> Tensor:
    """`grad @ W`. A weight that is too large is decoded in stretches of columns, whose products need no sum."""
    floating("grad", grad)
    w = operand(codes, scale, zero, shared, qtype, block, size, "the weight")
    if grad.shape[-1] != w.rows:
        raise ValueError(f"grad has {grad.shape[-1]} features, the weight has {w.rows} rows")
    beside("codes", codes.device, grad=grad)
    g = grad.reshape(-1, w.rows)
    step = max(_PART // max(w.rows, 1) // 8, 1) * 8
    if step >= size:
        return (g @ decoded(w, grad.dtype, (0, w.rows), (0, size))).reshape(*grad.shape[:-1], size)
    out = torch.empty(g.shape[0], size, dtype=grad.dtype, device=grad.device)
    for left in range(0, size, step):
        right = min(left + step, size)
        out[:, left:right] = g @ decoded(w, grad.dtype, (0, w.rows), (left, right))
    return out.reshape(*grad.shape[:-1], size)
