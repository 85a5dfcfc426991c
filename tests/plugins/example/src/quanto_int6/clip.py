# SPDX-License-Identifier: Apache-2.0
"""A quantizer that clips each block where its squared error is smallest."""

import torch

from quanto import reference
from quanto.blocks import split
from quanto.quantizers import Parameters, Quantizer, Target, get_quantizer


class ClipQuantizer(Quantizer):
    """Absmax (min/max where there are zero points), its range then shrunk to the best of 20 sizes, half at the least.

    A block with one outlier has a large scale for everything else. Clipping the outlier costs its own error and saves
    some of all others'. Never worse than where it starts.
    """

    name = "clip-mse"

    def parameters(self, x: torch.Tensor, target: Target) -> Parameters:
        if target.qtype.scale_dtype is not None:
            raise ValueError(f"algorithm 'clip-mse' needs free scales, {target.qtype.name} fixes them; use 'absmax'")
        x = torch.atleast_1d(x)
        start = get_quantizer("absmax" if target.symmetric else "minmax").parameters(x, target)
        scale, least = start.scale, self.error(x, target, start)
        for step in range(39, 19, -1):
            smaller = (start.scale.float() * (step / 40)).to(start.scale.dtype)
            error = self.error(x, target, start._replace(scale=smaller))
            better = error < least
            scale, least = torch.where(better, smaller, scale), torch.where(better, error, least)
        return start._replace(scale=scale)

    def error(self, x: torch.Tensor, target: Target, p: Parameters) -> torch.Tensor:
        """The sum of squared errors of each block, in the scale's shape."""
        codes = self.codes(x, target, p)
        values = reference.dequantize(codes, *p, target.qtype.name, target.block_size, x.shape[-1], torch.float32)
        squares = (values - x.float()).square()
        if not target.block_size:
            return squares.sum()
        return split(squares, target.block_size).sum(dim=tuple(range(1, 2 * x.ndim, 2)))
