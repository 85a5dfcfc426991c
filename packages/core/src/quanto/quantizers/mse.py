# SPDX-License-Identifier: Apache-2.0
"""Least squares: the scales (and zero points) whose rounded values are nearest to a tensor."""

from __future__ import annotations

from torch import Tensor

from .base import Parameters, Quantizer, Target
from .search import fit

__all__ = ["MSEQuantizer"]


class MSEQuantizer(Quantizer):
    """Least squared error of each block, found by alternation from several starts (see `fit`).

    Clipping a block's outliers costs their error and gains finer steps for all others (ACIQ, Banner et al., 2019,
    arXiv:1810.05723). Min/max is among the starts, so the result is never worse than that. Zero points are floating
    unless the scheme asks for integers: a grid that need not hold zero is about a tenth nearer.
    """

    name = "mse"
    zero_point = "float"

    def parameters(self, x: Tensor, target: Target) -> Parameters:
        """See `Quantizer.parameters`; serves every qtype, symmetric and with zero points."""
        return fit(x, target)
