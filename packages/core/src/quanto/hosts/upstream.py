# SPDX-License-Identifier: Apache-2.0
"""The tensors of one weight as optimum-quanto saves them, in canonical form.

qint8, qfloat8…   name.weight._data          int8 or float8, the shape of the float weight
qint4, qint2      name.weight._data._data    uint8; groups are rows [groups, size]; byte row r holds rows r, r + R,
                                             r + 2R … from its lowest bits, R = ceil(groups / codes per byte)
                  name.weight._shift         [groups, 1]: value = scale * code - shift, or scale * (code - shift)
                                             where it is an integer; codes count from zero
all               name.weight._scale         [out, 1, …] or [groups, 1], in the model's dtype
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import packing
from ..nn.slot import Slot
from ..scheme import Scheme

__all__ = ["CODES", "QTYPES", "group_size", "read_codes", "scheme_of"]

#: names of qtypes there, with and without the q, and here.
QTYPES = {
    "int8": "int8",
    "int4": "int4",
    "int2": "int2",
    "float8": "float8_e4m3fn",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2": "float8_e5m2",
}

#: suffixes of the tensor that holds a weight's codes.
CODES = (".weight._data", ".weight._data._data")


def group_size(width: int) -> int | None:
    """How many weights of a row of `width` share a scale in 2 and 4 bits; None for the whole row."""
    return next((g for g in (128, 96, 64, 32) if width % g == 0), None) if width > 128 else None


def scheme_of(qtype: str, shape: Sequence[int]) -> Scheme:
    """The scheme of a weight of `shape`, by the name of its qtype there.

    Raises:
        ValueError: for a name that optimum-quanto does not have.
    """
    weights = QTYPES.get(qtype.removeprefix("q"))
    if weights is None:
        raise ValueError(f"{qtype!r} is no qtype of optimum-quanto: {', '.join(QTYPES)}")
    if weights not in ("int4", "int2"):
        return Scheme(weights)
    width = 1
    for size in shape[1:]:
        width *= size
    group = group_size(width)
    return Scheme(weights, group_size=group, granularity="channel" if group is None else None, symmetric=False)


def read_codes(parts: Mapping[str, Tensor], slot: Slot, stored: torch.dtype) -> dict[str, Tensor]:
    """Canonical codes, scale and zero point of a weight, by the names of `quanto.nn.slot.PARTS`.

    Args:
        parts: `_data`, or `_data._data` and `_shift`, and `_scale`.
        slot: what is expected.
        stored: dtype of codes of 8 bits in a module.

    Raises:
        KeyError: with the name of a part that is missing.
        ValueError: if a part has another shape than the slot needs.
    """
    if slot.scheme.qtype.bits == 8:
        data = slot.rows(_shaped("_data", parts["_data"], slot.shape))
        return {"packed": data.contiguous().view(stored), "scale": parts["_scale"].reshape(slot.shape[0], -1)}
    bits = slot.scheme.qtype.bits
    rows, width = slot.rows_shape()
    size = slot.scheme.block_size((rows, width))[-1]
    groups = width // size
    each = 8 // bits
    data = _shaped("_data._data", parts["_data._data"], (-(-rows * groups // each), size)).view(torch.uint8)
    codes = torch.cat([data >> (bits * i) & (2**bits - 1) for i in range(each)])[: rows * groups]
    scale = _shaped("_scale", parts["_scale"], (rows * groups, 1)).reshape(rows, groups)
    shift = _shaped("_shift", parts["_shift"], (rows * groups, 1)).reshape(rows, groups)
    zero = shift.float()
    if shift.is_floating_point():
        flat = scale == 0  # all weights of the group are one number
        scale = torch.where(flat, 1, scale)
        codes = codes.view(rows, groups, -1).masked_fill(flat[..., None], 0)
        zero = zero / scale.float()
    zero = zero + slot.scheme.qtype.qmin  # codes count from the smallest value
    return {"packed": packing.pack(codes.view(rows, width), bits), "scale": scale, "zero_point": zero}


def _shaped(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} where the model needs {tuple(shape)}")
    return tensor
