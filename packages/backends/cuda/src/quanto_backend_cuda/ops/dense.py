# SPDX-License-Identifier: Apache-2.0
"""`dequantize`, `embedding`, `linear_input_grad`, and the linear layer of many tokens: decode a part, multiply it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import assembly, interpreted, launch
from . import check
from .weights import Facts, aligned, facts, raw_scale

__all__ = ["decoded", "dequantize", "embedding", "linear_by_parts", "linear_input_grad"]

# Elements decoded at a time: 128 MiB of half precision, however large the weight is. 14336 x 4096 at 4096 tokens takes
# 760 us in one part, 763 in two, 791 in eight: narrow products leave multiprocessors idle.
_PART = 1 << 26
# Rows of one launch: the second size of a grid is at most 65535.
_TALLEST = 65535 * 16


def decoded(
    weight: Sequence[Any],
    qtype: str,
    block: Sequence[int],
    size: int,
    dtype: torch.dtype,
    tiled: bool,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> Tensor:
    """The values of a 2-D weight `[N, size]`, or of some rows, or (tiled) of some columns from a multiple of 128 on."""
    from ..kernels.dense import decode_tiles

    codes, scale, zero, shared = weight
    raw, scale8 = raw_scale(scale)
    f = facts(qtype, block, size)
    first, last = rows or (0, codes.shape[0])
    left, right = columns or (0, size)
    out = torch.empty(last - first, right - left, dtype=dtype, device=codes.device)
    groups = scale.shape[-1] if scale.ndim else 1
    if out.numel() == 0:
        return out
    if tiled:
        chunks = -(-size // 128)
        asm = assembly(codes.device, f.kind)
        wide = interpreted()
        for begin in range(first, last, _TALLEST):
            end = min(begin + _TALLEST, last)
            grid = (-(-(right - left) // 128), -(-(end - begin) // 16))
            sizes = (begin, left, min(end, codes.shape[0]), size, right - left, chunks, groups)
            launch(
                decode_tiles, grid, codes.view(torch.uint8), raw, zero, shared, out[begin - first :], *sizes,
                KIND=f.kind, GROUP=f.group, ROWS=f.rows, STILED=f.rows == 1, SCALE8=scale8, ASM=asm, WIDE=wide, BN=16,
                num_warps=4,
            )  # fmt: skip
        return out
    if columns is not None:
        raise ValueError("columns of canonical weights are decoded as rows of a slice")
    per_row = scale[first // max(f.rows, 1) :] if scale.ndim > 1 else scale
    if first % max(f.rows, 1):
        raise ValueError(f"rows must begin at a multiple of {f.rows}, got {first}")
    zeros = zero[first // max(f.rows, 1) :] if zero is not None and zero.ndim > 1 else zero
    _rows(codes[first:last], raw_scale(per_row)[0], scale8, zeros, shared, None, out, size, groups, f)
    return out


def _rows(
    codes: Tensor,
    raw: Tensor,
    scale8: str,
    zero: Any,
    shared: Any,
    indices: Any,
    out: Tensor,
    size: int,
    groups: int,
    f: Facts,
) -> None:
    from ..kernels.dense import decode_rows

    count, table = out.shape[0], codes.shape[0]
    bn, bk = (16, 128) if count >= 16 else (1, 1024)
    launch(
        decode_rows, (-(-count // bn), -(-size // bk)), codes.view(torch.uint8), raw, zero, shared, indices, out, count,
        table, codes.shape[-1], size, groups, KIND=f.kind, BITS=f.bits, GROUP=f.group, ROWS=f.rows, SCALE8=scale8,
        BN=bn, BK=bk, num_warps=4,
    )  # fmt: skip


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: list[int],
    size: int,
    dtype: torch.dtype,
    *,
    traced: bool = False,
    tiled: bool = False,
) -> Tensor:
    """The operator; canonical weights of any rank whose leading dimensions do not share scales, tiled ones of two."""
    check.same_device(codes.device, scale=scale, zero_point=zero, global_scale=shared)
    check.weight("the weight", size, codes, scale, zero, None, qtype, block, tiled)
    lead = codes.shape[:-1]
    flat = [t.contiguous().reshape(-1, t.shape[-1]) if t is not None and t.ndim else t for t in (codes, scale, zero)]
    pair = [1, *block][-2:] if block else block
    return decoded((*flat, shared), qtype, pair, size, dtype, tiled).reshape(*lead, size)


def embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: list[int],
    size: int,
    dtype: torch.dtype,
    *,
    traced: bool = False,
) -> Tensor:
    """The operator on a canonical table; a row that does not exist is NaN, since a kernel cannot raise."""
    check.same_device(codes.device, indices=indices, scale=scale, zero_point=zero, global_scale=shared)
    check.weight("the table", size, codes, scale, zero, None, qtype, block, False)
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"indices must be int32 or int64, got {indices.dtype}")
    raw, scale8 = raw_scale(scale)
    out = torch.empty(indices.numel(), size, dtype=dtype, device=codes.device)
    if out.numel():
        groups = scale.shape[-1] if scale.ndim else 1
        flat = indices.reshape(-1).contiguous()
        f = facts(qtype, block, size)
        _rows(codes.contiguous(), raw.contiguous(), scale8, zero, shared, flat, out, size, groups, f)
    return out.reshape(*indices.shape, size)


def linear_by_parts(
    x: Tensor, weight: Sequence[Any], bias: Tensor | None, qtype: str, block: Sequence[int], tiled: bool
) -> Tensor:
    """`x[M, K] @ W.T + bias`: stretches of rows of W are decoded to a buffer and multiplied by cuBLAS."""
    count, size = weight[0].shape[0], x.shape[-1]
    rows = facts(qtype, block, size).rows
    step = max(_PART // max(size, 1) // 256, 1) * 256
    step = max(step // rows, 1) * rows if rows > 1 else step
    bias = None if bias is None else bias.to(x.dtype)
    if step >= count:
        w = decoded(weight, qtype, block, size, x.dtype, tiled)
        return torch.nn.functional.linear(x, w, bias)
    out = torch.empty(x.shape[0], count, dtype=x.dtype, device=x.device)
    for first in range(0, count, step):
        last = min(first + step, count)
        w = decoded(weight, qtype, block, size, x.dtype, tiled, rows=(first, last))
        if bias is None:
            torch.mm(x, w.t(), out=out[:, first:last])
        else:
            torch.addmm(bias[first:last], x, w.t(), out=out[:, first:last])
    return out


def linear_input_grad(
    grad: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: list[int],
    size: int,
    *,
    traced: bool = False,
    tiled: bool = False,
) -> Tensor:
    """`grad @ W`. A tiled weight that is too large is decoded in stretches of columns, whose products need no sum."""
    check.activations("grad", grad)
    check.same_device(grad.device, codes=codes, scale=scale, zero_point=zero, global_scale=shared)
    check.weight("the weight", size, codes, scale, zero, None, qtype, block, tiled)
    if grad.shape[-1] != codes.shape[0]:
        raise ValueError(f"grad has {grad.shape[-1]} features, the weight has {codes.shape[0]} rows")
    g = grad.reshape(-1, grad.shape[-1])
    weight = (aligned(codes.contiguous()), scale.contiguous(), zero, shared)
    count = codes.shape[0]
    step = max(_PART // max(count, 1) // 128, 1) * 128
    if not tiled or step >= size:
        w = decoded(weight, qtype, block, size, grad.dtype, tiled)
        return (g @ w).reshape(*grad.shape[:-1], size)
    out = torch.empty(g.shape[0], size, dtype=grad.dtype, device=grad.device)
    for left in range(0, size, step):
        right = min(left + step, size)
        part = decoded(weight, qtype, block, size, grad.dtype, tiled, columns=(left, right))
        torch.mm(g, part, out=out[:, left:right])
    return out.reshape(*grad.shape[:-1], size)
