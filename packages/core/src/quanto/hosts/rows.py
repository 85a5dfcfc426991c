# SPDX-License-Identifier: Apache-2.0
"""Quantizing a weight some rows at a time, so that loading needs little memory beside the model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn.slot import Slot
from ..tensor.quantize import quantize_parts

__all__ = ["quantize_rows", "rows_are_alone"]

#: elements quantized at once: the float32 copies that an algorithm makes of them are the working set of loading.
CHUNK = 2**24

#: algorithms that choose the scales of a row by that row alone.
_ROWWISE = ("absmax", "minmax", "hqq", "mse")


def quantize_rows(slot: Slot, rows: Tensor) -> tuple[Tensor | None, ...]:
    """Quantizes the rows of a weight `[…, out, in]`, some at a time where that gives the same numbers.

    Experts are one matrix each, and a row alone decides its scales unless blocks span rows.
    """
    scheme, blocks = slot.scheme, slot.block_size
    if blocks and len(blocks) != rows.ndim:  # one expert of several
        blocks = blocks[len(blocks) - rows.ndim :]
    blocks = tuple(min(b, n) for b, n in zip(blocks, rows.shape, strict=False))  # of a rank's share of rows or columns
    if rows.numel() <= CHUNK or rows.is_meta or rows.ndim < 2 or not rows_are_alone(slot):
        return quantize_parts(rows, scheme, blocks)
    if rows.ndim > 2:
        made = [quantize_rows(slot, matrix) for matrix in rows]
        return tuple(None if t[0] is None else torch.stack(t) for t in zip(*made, strict=True))
    step = max(1, CHUNK // rows.shape[-1])
    made = [quantize_parts(part, scheme, blocks) for part in rows.split(step)]
    return tuple(None if t[0] is None else torch.cat(t) for t in zip(*made, strict=True))


def rows_are_alone(slot: Slot) -> bool:
    """Whether a row is quantized without a look at the others, so that they may be quantized some at a time."""
    scheme = slot.scheme
    one_each = scheme.granularity not in ("tensor", "block") and not scheme.qtype.two_level
    return one_each and scheme.quantizer in _ROWWISE
