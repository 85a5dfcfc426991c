# SPDX-License-Identifier: Apache-2.0
"""Absmax: the largest magnitude of a block maps to the largest value of the qtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import split
from ..reference import round_up_to
from .base import Parameters, Quantizer, Target

__all__ = ["AbsmaxQuantizer", "block_reduce"]


def block_reduce(x: Tensor, block_size: tuple[int, ...], minimum: bool = False) -> Tensor:
    """The largest (smallest) element of each block, in the scale's shape. Padding counts as zero."""
    if not block_size:
        return x.amin() if minimum else x.amax()
    blocks = split(x, block_size)
    dims = tuple(range(1, blocks.ndim, 2))
    return blocks.amin(dims) if minimum else blocks.amax(dims)


class AbsmaxQuantizer(Quantizer):
    """`scale = max|x| / qtype.amax`, rounded up to the scale's dtype so that nothing is clipped.

    Power-of-two scales (MX formats) are rounded up too, as NVIDIA's MXFP8 recipe does, rather than down as in the
    example conversion of the OCP specification, which clips the largest values of a block by up to a quarter.
    NVFP4 takes two levels: `global_scale = max|x| / (6 * 448)` and E4M3 block scales rounded to nearest.
    An all-zero block gets scale 1.
    """

    name = "absmax"

    def parameters(self, x: Tensor, target: Target) -> Parameters:
        """See `Quantizer.parameters`; serves every qtype, symmetric."""
        if not target.symmetric:
            raise ValueError("algorithm 'absmax' is symmetric; use 'minmax' for zero points")
        compute = torch.promote_types(x.dtype, torch.float32)
        q = target.qtype
        values = (
            x if x.dtype.itemsize > 1 else x.to(compute)
        )  # the largest is exact in any dtype: no copy of x in float32
        low, high = (block_reduce(values, target.block_size, minimum=m) for m in (True, False))
        peak = torch.maximum(high, -low).to(compute)
        if q.two_level:
            return self._two_levels(peak, target)
        scale = torch.where(peak == 0, 1.0, peak / q.amax)
        return Parameters(round_up_to(scale, target.scale_dtype))

    def _two_levels(self, peak: Tensor, target: Target) -> Parameters:
        limit = torch.finfo(target.scale_dtype).max
        finite = torch.where(peak.isfinite(), peak, 0.0)  # a block with infinity or NaN spoils itself, not the others
        largest = finite.amax() if peak.numel() else peak.new_zeros(())
        shared = torch.where(largest == 0, 1.0, largest / (target.qtype.amax * limit)).float()
        scale = (peak / target.qtype.amax / shared).clamp(max=limit)
        scale = torch.where(peak.isfinite(), scale, torch.nan).to(target.scale_dtype)
        smallest = torch.tensor(1, dtype=torch.uint8, device=scale.device).view(target.scale_dtype)
        return Parameters(torch.where(scale.float() == 0, smallest, scale), None, shared)
