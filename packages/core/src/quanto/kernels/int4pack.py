# SPDX-License-Identifier: Apache-2.0
"""int4 weights under bfloat16 activations on a CPU: `torch._weight_int4pack_mm_for_cpu` and its private layout.

    codes         uint8 [out, in / 2], nibbles interleaved for the vector unit as torch chooses
    scale         bfloat16 [groups, out, 2]: scale and -zero_point * scale side by side

2048 x 2048, group 128: M=1 0.12 ms, M=128 6.9 ms; decoding alone takes the reference some 25 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import packing
from .layout import Layout, Tensors
from .spec import Request

__all__ = ["LAYOUT", "linear", "refuse"]

_GROUPS = (32, 64, 128, 256)


def _pack(tensors: Tensors, qtype: str, block_size: tuple[int, ...], size: int) -> Tensors:
    codes, scale, zero, _ = tensors
    nibbles = packing.unpack(codes, 4, size)
    packed = torch._convert_weight_to_int4pack_for_cpu(nibbles.to(torch.int32), 2)
    shift = torch.zeros_like(scale) if zero is None else -(zero.float() * scale.float()).to(scale.dtype)
    both = torch.stack([scale, shift], dim=-1).transpose(0, 1).contiguous()
    # the zero point stays beside it: whether there was one must survive the way back
    return packed, both, zero, None


def _unpack(tensors: Tensors, qtype: str, block_size: tuple[int, ...], size: int) -> Tensors:
    packed, both, zero, _ = tensors
    scale = both[..., 0].transpose(0, 1).contiguous()
    rows = scale.shape[0]
    if packed.is_meta:
        return packed.new_empty(rows, packing.packed_size(size, 4)), scale, zero, None
    low, high = (t.to(packed.device) for t in _order(rows, size))  # offloading may have moved the tensors by itself
    pairs = packed.reshape(-1)
    nibbles = pairs.new_empty(rows * size)
    nibbles[low] = pairs & 0xF
    nibbles[high] = pairs >> 4
    return packing.pack(nibbles.view(rows, size), 4), scale, zero, None


@lru_cache(maxsize=2)  # two of the size of a weight; a model has few shapes, one at a time
def _order(rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Where the low and the high nibble of each packed byte came from.

    torch's interleaving differs between instruction sets and is not documented, so it is asked: packing the index of
    each element, four bits at a time, spells out in every packed nibble the element that landed there.
    """
    index = torch.arange(rows * size, dtype=torch.int32).view(rows, size)
    low = torch.zeros(rows * size // 2, dtype=torch.int64)
    high = torch.zeros_like(low)
    for shift in range(0, (rows * size - 1).bit_length(), 4):
        packed = torch._convert_weight_to_int4pack_for_cpu((index >> shift) & 0xF, 2).reshape(-1)
        low |= (packed & 0xF).long() << shift
        high |= (packed >> 4).long() << shift
    return low, high


def linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Any,
    shared: Any,
    bias: Tensor | None,
    qtype: str,
    block: Sequence[int],
) -> Tensor:
    """The `linear` operator on this layout."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if rows.shape[0] == 0:
        return x.new_empty(*x.shape[:-1], scale.shape[1])
    y = torch._weight_int4pack_mm_for_cpu(rows, codes, block[-1], scale)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.reshape(*x.shape[:-1], -1)


def refuse(request: Request) -> str | None:
    """What torch's kernel cannot take."""
    rows, size = request.shape[-2:]
    group = request.group_size
    if group not in _GROUPS or size % group:
        return f"takes groups of 32, 64, 128 or 256 that divide, not {group} of {size}"
    if rows % 16:
        return f"needs out_features that are a multiple of 16, not {rows}"
    return None


LAYOUT = Layout("torch.int4pack", _pack, _unpack)
