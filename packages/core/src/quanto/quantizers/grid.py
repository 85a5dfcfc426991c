# SPDX-License-Identifier: Apache-2.0
"""The values that a qtype can take, and blocks as rows: what every search for scales works on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..blocks import scale_shape, split
from ..qtypes import QType

__all__ = ["as_rows", "limits", "nearest", "round_scale", "round_zero", "valid_elements"]


def limits(qtype: QType) -> tuple[float, float]:
    """The smallest and the largest element of a qtype."""
    if qtype.is_integer:
        return qtype.qmin, qtype.qmax
    if qtype.table is not None:
        return min(qtype.table), max(qtype.table)
    return -qtype.amax, qtype.amax


def nearest(values: Tensor, qtype: QType) -> Tensor:
    """The element of `qtype` nearest to each of `values`, floating."""
    if qtype.is_integer:
        return values.round().clamp_(qtype.qmin, qtype.qmax)
    if qtype.table is not None:
        table = torch.tensor(sorted(set(qtype.table)), dtype=values.dtype, device=values.device)
        found = torch.bucketize(values, (table[1:] + table[:-1]) / 2, out_int32=True)
        return table[found]
    return reference.decode(reference.encode(values, qtype), qtype, values.dtype)


def as_rows(x: Tensor, block_size: Sequence[int]) -> Tensor:
    """The blocks of `x` as rows, `[blocks, elements]`, in the order of the flattened scale; short blocks have zeros."""
    if not block_size:
        return x.reshape(1, -1)
    if all(b == 1 for b in block_size[:-1]) and block_size[-1] and x.shape[-1] % block_size[-1] == 0:
        return x.reshape(-1, block_size[-1])
    blocks = split(x, block_size)
    outer = range(0, blocks.ndim, 2)
    return blocks.permute(*outer, *(dim + 1 for dim in outer)).reshape(blocks.shape[::2].numel(), -1)


def valid_elements(shape: Sequence[int], block_size: Sequence[int], device: torch.device) -> Tensor | None:
    """`as_rows` of ones: 0 where a short block has padding; None where no block is short."""
    sizes = scale_shape(shape, block_size)
    if all(n == b * blocks for n, b, blocks in zip(shape, block_size, sizes, strict=False)):
        return None
    return as_rows(torch.ones(tuple(shape), device=device), block_size)


def round_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The positive value of `dtype` nearest to each of `scale` (float32), as float32."""
    if dtype == scale.dtype:
        return scale.clamp(min=torch.finfo(dtype).tiny)
    up = reference.round_up_to(scale, dtype).to(scale.dtype)
    if dtype == torch.float8_e8m0fnu:
        return torch.where(up > 1.5 * scale, up / 2, up).clamp(min=2.0**-127)
    near = scale.clamp(max=torch.finfo(dtype).max).to(dtype).to(scale.dtype)
    return torch.where(near > 0, near, up)


def round_zero(zero: Tensor, qtype: QType, dtype: torch.dtype) -> Tensor:
    """Zero points as `dtype` holds them: whole and within the range of the integer `qtype`, or floating."""
    if dtype == torch.int8:
        return zero.round().clamp(qtype.qmin, qtype.qmax)
    limit = torch.finfo(dtype).max
    return zero.clamp(-limit, limit).to(dtype).to(zero.dtype)
