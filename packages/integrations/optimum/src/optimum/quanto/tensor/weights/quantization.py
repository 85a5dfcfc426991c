# SPDX-License-Identifier: Apache-2.0
"""From a float weight and its scales to a quantized one."""

from __future__ import annotations

import torch
from torch import Tensor

from ...qtype import qtype
from ..qbits import WeightQBitsTensor
from ..qbytes import WeightQBytesTensor

__all__ = ["quantize_weight"]


def quantize_weight(
    t: Tensor,
    qtype: qtype,
    axis: int,
    scale: Tensor,
    shift: Tensor | None = None,
    group_size: int | None = None,
    activation_qtype: qtype | None = None,
    optimized: bool = True,
) -> WeightQBytesTensor | WeightQBitsTensor:
    """Quantizes a weight.

    Args:
        t: floating, any shape.
        qtype: of the codes.
        axis: 0 or -1, along which scales differ.
        scale: as optimizers return it.
        shift: for 2 and 4 bits only, and there needed.
        group_size: for 2 and 4 bits.
        activation_qtype: what the weight will be multiplied with.
        optimized: accepted; kernels are chosen when the weight is used.

    Raises:
        ValueError: where an argument does not fit the qtype.
    """
    if axis not in (0, -1):
        raise ValueError(f"axis must be 0 or -1, got {axis}")
    if qtype.bits == 8:
        if shift is not None:
            raise ValueError(f"shift must be None for {qtype.name}")
        if group_size is not None:
            raise ValueError(f"group_size must be None for {qtype.name}")
        along = None if t.shape[axis] == 1 else axis  # one entry along the axis: per tensor
        return WeightQBytesTensor.quantize(t, qtype, along, scale, activation_qtype, optimized)
    if shift is None:
        raise ValueError(f"shift must be given for {qtype.name}")
    if not shift.is_floating_point() and shift.dtype not in (torch.int8, torch.uint8):
        raise ValueError(f"shift must be floating, int8 or uint8, got {shift.dtype}")
    return WeightQBitsTensor.quantize(t, qtype, axis, group_size, scale, shift, optimized)
