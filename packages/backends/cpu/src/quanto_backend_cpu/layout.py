# SPDX-License-Identifier: Apache-2.0
"""The layout of the kernels: panels of 16 rows (csrc/format.h draws them)."""

from __future__ import annotations

import torch
from torch import Tensor

from quanto.kernels import Layout
from quanto.kernels.layout import Tensors
from quanto.qtypes import get_qtype

from .library import operator

__all__ = ["PANELS"]


def _pack(tensors: Tensors, qtype: str, block_size: tuple[int, ...], size: int) -> Tensors:
    codes, scale, zero, shared = tensors
    if scale.dtype.itemsize == 1:
        scale = scale.to(torch.bfloat16)  # exact for e8m0 and e4m3
    packed, scales, zeros = operator("pack_panels")(_bytes(codes), scale, zero, qtype, list(block_size), size)
    return packed, scales, None if zero is None else zeros, shared


def _unpack(tensors: Tensors, qtype: str, block_size: tuple[int, ...], size: int) -> Tensors:
    packed, scales, zeros, shared = tensors
    q, home = get_qtype(qtype), packed.device
    if home.type not in ("cpu", "meta"):  # offloading moves tensors by itself
        packed, scales, zeros = packed.cpu(), scales.cpu(), None if zeros is None else zeros.cpu()
    codes, scale, zero = operator("unpack_panels")(packed, scales, zeros, qtype, list(block_size), size)
    codes, scale, zero = (t.to(home) for t in (codes, scale, zero))
    scale = _first(scale, block_size, (codes.shape[0], size))
    if q.scale_dtype is not None:
        scale = scale.to(q.scale_dtype)
    return codes.view(q.storage), scale, None if zeros is None else _first(zero, block_size, scale.shape), shared


def _bytes(codes: Tensor) -> Tensor:
    return codes.view(torch.uint8)


def _first(spread: Tensor, block_size: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """One value of each block, where rows share it: panels repeat it."""
    if not block_size:
        return spread.reshape(-1)[0].clone() if spread.numel() else spread.new_ones(())
    return spread[:: block_size[0]].contiguous() if block_size[0] > 1 else spread


PANELS = Layout("cpu.panels", _pack, _unpack, stacks=16)
