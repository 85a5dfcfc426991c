# SPDX-License-Identifier: Apache-2.0
"""Weights of 2 and 4 bits as the kernels of quanto take them, and back to the bytes of files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quanto import packing
from quanto.hosts.upstream import read_codes
from quanto.kernels import Request, kernels
from quanto.kernels.layout import Tensors
from quanto.nn.slot import Slot
from quanto.scheme import Scheme
from quanto.weight import CANONICAL, Weight, make_key

from .packed import PackedTensor

if TYPE_CHECKING:
    from .qbits import WeightQBitsTensor

__all__ = ["arrange", "restore"]


def arrange(q: WeightQBitsTensor) -> Weight | None:
    """The weight for its fastest kernel under activations of its dtype; None where no kernel beats dequantizing.

    The codes come back unchanged by `restore`; scales and shifts are kept beside, for their dtype is another here.
    """
    packed = q._data
    if q.axis != 0 or q.ndim != 2 or q.device.type == "meta" or not isinstance(packed, PackedTensor):
        return None
    rows, width = q.shape
    size = width if q._group_size is None else q._group_size
    entries = (rows * (width // size), 1)
    if not rows or not width or any(tuple(t.shape) != entries for t in (q._scale, q._shift)):
        return None
    name = q.qtype.core
    block = (1, size)
    float_zero = torch.empty((rows, width // size), dtype=torch.float32, device="meta")
    scale_like = torch.empty(float_zero.shape, dtype=q._scale.dtype, device="meta")
    key = make_key(name, block, (rows, width), scale_like, float_zero)
    request = Request.parse("linear", key, q.device.type, q.dtype)
    choice = kernels.choose(request, any_layout=True)
    if choice.spec.reference or _lost(q, packed):
        return None
    group = None if size == width else size
    scheme = Scheme(name, group_size=group, granularity="channel" if group is None else None, symmetric=False)
    parts = {"_data._data": packed._data, "_scale": q._scale, "_shift": q._shift}
    made = read_codes(parts, Slot(scheme, (rows, width), q.dtype), torch.uint8)
    layout = choice.spec.layout
    tensors: Tensors = (made["packed"], made["scale"], made["zero_point"], None)
    if layout != CANONICAL:
        tensors = kernels.layouts[layout].pack(tensors, name, block, width)
        key = make_key(name, block, (rows, width), scale_like, float_zero, layout)
    return Weight(*tensors, name, block, width, key)


def _lost(q: WeightQBitsTensor, packed: PackedTensor) -> bool:
    """Whether codes of groups whose scale is zero, which kernels do not keep, are other than zero."""
    flat = q._scale == 0
    return bool(flat.any()) and bool(packed.unpack()[flat.flatten()].any())


def restore(w: Weight) -> PackedTensor:
    """The codes as files have them: groups are rows, and two or four rows share bytes."""
    tensors, layout = w[:4], w.key.rpartition(";")[2]
    if layout != CANONICAL:
        tensors = kernels.layouts[layout].unpack(tensors, w.qtype, w.block_size, w.size)
    bits = int(w.qtype.removeprefix("int"))
    codes: Tensor = packing.unpack(tensors[0], bits, w.size)
    grouped = codes.reshape(math.prod(codes.shape) // w.block_size[-1], w.block_size[-1])
    return PackedTensor.pack(grouped, bits)
