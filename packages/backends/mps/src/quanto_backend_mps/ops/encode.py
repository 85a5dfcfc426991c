# SPDX-License-Identifier: Apache-2.0
"""`quantize`, `dynamic_quantize`, `pack`, `unpack`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quanto import packing, reference
from quanto.contracts import check_scales
from quanto.qtypes import get_qtype

from ..library import launch
from ..weights import KINDS, NONE, SUFFIXES, TABLES, TYPES, beside, floating

__all__ = ["Bits", "Encode", "dynamic_quantize", "pack", "quantize", "unpack"]

_GROUP = (32, 4)
_TOKEN_THREADS = 256


class Encode(NamedTuple):
    """The struct of `shaders/encode.metal`."""

    rows: int
    size: int
    stride: int
    group: int
    groups: int
    block_rows: int
    scale_type: int
    zero_type: int
    table: int


class Bits(NamedTuple):
    """The struct of `shaders/bits.metal`."""

    rows: int
    size: int
    stride: int
    bits: int


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: Sequence[int],
) -> Tensor:
    """The operator, for two dimensions, and for any number of them with one scale for everything."""
    floating("x", x)
    beside("x", x.device, scale=scale, zero_point=zero, global_scale=shared)
    q = get_qtype(qtype)
    size = x.shape[-1]
    stride = packing.packed_size(size, q.bits)
    out = torch.empty(*x.shape[:-1], stride, dtype=q.storage, device=x.device)
    if not out.numel():
        return out
    rows = x.numel() // size
    block_rows, group = (block[0], min(block[1], size)) if block else (rows, size)
    groups = -(-size // group)
    check_scales(scale, zero, (rows, size), block)
    factor = (scale if shared is None else scale.float() * shared).contiguous()
    zeros = factor if zero is None else zero.contiguous()
    types = TYPES[factor.dtype], NONE if zero is None else TYPES[zeros.dtype]
    sizes = Encode(rows, size, stride, group, groups, block_rows, *types, TABLES.get(qtype, 0))
    name = f"quantize_{KINDS[qtype]}_{SUFFIXES[x.dtype]}"
    launch("encode", name, (x.contiguous(), factor, zeros, out), sizes, (-(-size // 8), rows), _GROUP)
    return out


def dynamic_quantize(x: Tensor, qtype: str, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The operator for int8: one scale per token."""
    floating("x", x)
    if scale_dtype != torch.float32 or qtype != "int8":
        codes, scale = reference.dynamic_quantize(x, qtype, scale_dtype)
        return codes.contiguous(), scale.contiguous()
    size = x.shape[-1]
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    if not codes.numel():
        return codes, scale.fill_(1.0)
    rows = scale.numel()
    sizes = Encode(rows, size, size, size, 1, 1, 0, NONE, 0)
    threads = (rows * _TOKEN_THREADS, 1)
    name = f"dynamic_int8_{SUFFIXES[x.dtype]}"
    launch("encode", name, (x.contiguous(), scale, codes), sizes, threads, (_TOKEN_THREADS, 1))
    return codes, scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """The operator."""
    if bits == 8:
        return codes.clone(memory_format=torch.contiguous_format)
    size = codes.shape[-1]
    stride = packing.packed_size(size, bits)
    out = torch.empty(*codes.shape[:-1], stride, dtype=torch.uint8, device=codes.device)
    if out.numel():
        rows = codes.numel() // size
        sizes = Bits(rows, size, stride, bits)
        launch("bits", "pack", (codes.contiguous(), out), sizes, (-(-size // 8), rows), _GROUP)
    return out


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """The operator.

    Raises:
        ValueError: if the rows are too short for `size` codes.
    """
    if bits == 8:
        return packed.clone(memory_format=torch.contiguous_format)
    stride = packed.shape[-1]
    need = packing.packed_size(size, bits)
    if stride < need:
        raise ValueError(f"packed has {stride} bytes a row, {size} codes of {bits} bits need {need}")
    out = torch.empty(*packed.shape[:-1], size, dtype=torch.uint8, device=packed.device)
    if out.numel():
        rows = packed.numel() // stride
        sizes = Bits(rows, size, stride, bits)
        launch("bits", "unpack", (packed.contiguous(), out), sizes, (-(-size // 8), rows), _GROUP)
    return out
