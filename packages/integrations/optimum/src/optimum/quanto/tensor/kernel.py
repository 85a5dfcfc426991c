# SPDX-License-Identifier: Apache-2.0
"""From tensors of optimum.quanto to weights as quanto's operators take them."""

from __future__ import annotations

import torch
from torch import Tensor

from quanto.qtypes import get_qtype
from quanto.weight import Weight, make_key

__all__ = ["codes_of", "of_rows"]


def codes_of(data: Tensor) -> Tensor:
    """Codes as quanto stores them: float8 as bytes."""
    return data.view(torch.uint8) if data.is_floating_point() else data


def of_rows(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Weight:
    """A weight of 8 bits.

    Args:
        data: int8 or float8, `[out, in]`, contiguous.
        scale: `[out, 1]`, or of one element.
        dtype: of the scale that operators see.
    """
    codes, name = codes_of(data), get_qtype(data.dtype).name
    rows, size = codes.shape
    block = (1, size) if scale.numel() == rows else ()
    scale = scale.to(dtype).reshape((rows, 1) if block else ())
    return Weight(codes, scale, None, None, name, block, size, make_key(name, block, (rows, size), scale, None))
