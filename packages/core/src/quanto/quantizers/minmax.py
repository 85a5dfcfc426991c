# SPDX-License-Identifier: Apache-2.0
"""Min/max: the range of a block maps to the range of an integer qtype, with a zero point."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import round_up_to
from .absmax import block_reduce
from .base import Parameters, Quantizer, Target
from .grid import round_zero

__all__ = ["MinMaxQuantizer"]


class MinMaxQuantizer(Quantizer):
    """`scale = (max - min) / (2**bits - 1)`, `zero_point = round(qmin - min / scale)`.

    The range always holds zero, so that the zero point is an integer within the qtype's own range (which formats of
    other libraries require) and zero stays exact; where the scheme asks for floating zero points it need not. The scale
    is rounded up so that nothing is clipped.
    """

    name = "minmax"

    def parameters(self, x: Tensor, target: Target) -> Parameters:
        """See `Quantizer.parameters`; serves integers."""
        q = target.qtype
        if not q.is_integer:
            raise ValueError(f"algorithm 'minmax' needs an integer qtype, not {q.name}; use 'absmax'")
        if target.symmetric:
            raise ValueError("algorithm 'minmax' places zero points; use 'absmax' for a symmetric scheme")
        compute = torch.promote_types(x.dtype, torch.float32)
        values = (
            x if x.dtype.itemsize > 1 else x.to(compute)
        )  # the largest is exact in any dtype: no copy of x in float32
        low = block_reduce(values, target.block_size, minimum=True).to(compute)
        high = block_reduce(values, target.block_size).to(compute)
        whole = target.zero_dtype == torch.int8
        if whole:
            low, high = low.clamp(max=0), high.clamp(min=0)
        half = high / 2 - low / 2  # high - low may overflow
        scale = round_up_to(torch.where(half == 0, 1.0, half / ((q.qmax - q.qmin) / 2)), target.scale_dtype)
        zero = q.qmin - low / scale.to(compute)
        if not whole:
            return Parameters(scale, round_zero(zero, q, target.zero_dtype).to(target.zero_dtype))
        return Parameters(scale, torch.nan_to_num(round_zero(zero, q, torch.int8)).to(torch.int8))
