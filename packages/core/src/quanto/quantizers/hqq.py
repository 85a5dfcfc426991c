# SPDX-License-Identifier: Apache-2.0
"""Half-quadratic quantization: scales and zero points that fit most weights well, and outliers less."""

from __future__ import annotations

from torch import Tensor

from .base import Parameters, Quantizer, Target
from .search import fit

__all__ = ["HQQQuantizer"]

_BETA = 4.0  # weight of the splitting: from 2 to 8 perplexities of int4 and int2 models differ by their noise
_START, _STEPS = 0.9, 2  # 3 times the time of min/max; 8 steps from 1.0 take 7 times and end no better


class HQQQuantizer(Quantizer):
    """Half-quadratic quantization (Badri and Shaji, 2023, https://mobiusml.github.io/hqq_blog/).

    Minimizes the p-norm of the residuals with p < 1, which outliers dominate less than a square. Half-quadratic
    splitting makes that a sequence of two easy problems, here for all groups at once: a shrinkage of the residuals that
    leaves their outliers, and least squares on what remains, which have a closed form.

    Other than in the original, residuals are measured in steps of the grid, so that the result doesn't depend on the
    magnitude of the weights; p is 1/2, whose shrinkage is a reciprocal square root; the scale is fitted too.
    """

    name = "hqq"
    zero_point = "float"

    def parameters(self, x: Tensor, target: Target) -> Parameters:
        """See `Quantizer.parameters`; serves every qtype, symmetric and with zero points."""
        fine = target.qtype.bits == 8 or target.scale_dtype.itemsize == 1  # clipping costs more than it gains
        starts = (1.0,) if fine else (_START,)
        return fit(x, target, starts=starts, steps=_STEPS, robust=_outliers, plain=fine)


def _outliers(residual: Tensor) -> Tensor:
    """Shrinkage for p = 1/2: `sign(r) * max(|r| - |r| ** (p - 1) / beta, 0)`."""
    size = residual.abs()
    return size.sub_(size.rsqrt(), alpha=1 / _BETA).clamp_(min=0).copysign_(residual)
