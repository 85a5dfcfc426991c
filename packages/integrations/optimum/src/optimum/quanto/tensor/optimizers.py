# SPDX-License-Identifier: Apache-2.0
"""Optimizers: what finds the scales, and shifts, of a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..qtype import qtype
from .grouped import axis_to_dim, group

__all__ = [
    "AbsmaxOptimizer",
    "AffineOptimizer",
    "HqqOptimizer",
    "MaxOptimizer",
    "Optimizer",
    "SymmetricOptimizer",
]


def _along(base: Tensor, axis: int | None) -> int | None:
    """The axis, or None where it has a single entry: such a weight has one scale, as in files of optimum-quanto."""
    return None if axis is not None and base.shape[axis] == 1 else axis


class Optimizer(ABC):
    """Called with a weight and a qtype; gradients do not pass."""

    @abstractmethod
    def __call__(self, base: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The scale, or the scale and the shift."""


class SymmetricOptimizer(Optimizer):
    """An optimizer that returns a scale only."""

    @torch.no_grad()
    def __call__(self, base: Tensor, qtype: qtype, axis: int | None = None) -> Tensor:
        """The scale: `[]`, or one for each entry of the axis, in as many dimensions as the base has."""
        if axis not in (0, -1, None):
            raise ValueError(f"axis must be 0, -1 or None, got {axis}")
        scale = self.optimize(base, qtype, _along(base, axis))
        if scale.dtype != base.dtype:
            raise TypeError(f"{type(self).__name__}.optimize must return {base.dtype}, got {scale.dtype}")
        return scale

    @abstractmethod
    def optimize(self, base: Tensor, qtype: qtype, axis: int | None) -> Tensor:
        """See `__call__`."""


class AbsmaxOptimizer(SymmetricOptimizer):
    """`scale = max(abs(base)) / qmax`."""

    def optimize(self, base: Tensor, qtype: qtype, axis: int | None) -> Tensor:
        base = base.abs()
        peak = base.max() if axis is None else torch.amax(base, dim=axis_to_dim(base, axis), keepdim=True)
        return peak / qtype.qmax


class AffineOptimizer(Optimizer):
    """An optimizer that returns a scale and a shift."""

    @torch.no_grad()
    def __call__(
        self, base: Tensor, qtype: qtype, axis: int, group_size: int | None = None, zeropoint: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Finds scales and shifts.

        Args:
            base: the weight.
            qtype: of 2 or 4 bits.
            axis: 0 or -1.
            group_size: how many weights share a scale; None for a whole row or column.
            zeropoint: whether shifts are whole, in units of the scale; else they are floats, in units of the base.
        """
        if axis not in (0, -1):
            raise ValueError(f"axis must be 0 or -1, got {axis}")
        if group_size is not None:
            base = group(base, axis, group_size)
        if group_size is not None and base.numel() == 0:
            raise ValueError("base has no elements")
        scale, shift = self.optimize(base, qtype, _along(base, axis))
        if scale.dtype != base.dtype or shift.dtype != base.dtype:
            raise TypeError(
                f"{type(self).__name__}.optimize must return {base.dtype}, got {scale.dtype}, {shift.dtype}"
            )
        if zeropoint:
            whole = torch.round(shift / torch.where(scale == 0, 1, scale))
            shift = whole.clamp(0, 2**qtype.bits - 1).to(torch.uint8)
        return scale, shift

    @abstractmethod
    def optimize(self, base: Tensor, qtype: qtype, axis: int | None) -> tuple[Tensor, Tensor]:
        """See `__call__`; the base is grouped already, the axis None where it has one entry."""


class MaxOptimizer(AffineOptimizer):
    """The range of a group maps to the range of the qtype.

    A single row has a scale for each of its entries, so that nothing is rounded: optimum-quanto's files have that.
    """

    def optimize(self, base: Tensor, qtype: qtype, axis: int | None) -> tuple[Tensor, Tensor]:
        dims = axis_to_dim(base, -1 if axis is None else axis)
        low, high = torch.amin(base, dim=dims, keepdim=True), torch.amax(base, dim=dims, keepdim=True)
        return (high - low) / (2**qtype.bits - 1), -low


class HqqOptimizer(MaxOptimizer):
    """Half-quadratic quantization (Badri and Shaji, 2023, https://mobiusml.github.io/hqq_blog/).

    Starts from the range, keeps the scale, and moves the shift so that the p-norm of the errors falls.
    """

    def __init__(
        self,
        lp_norm: float = 0.7,
        beta: float = 10.0,
        kappa: float = 1.01,
        iters: int = 20,
        verbose: bool = False,
    ) -> None:
        self.lp_norm, self.beta, self.kappa, self.iters, self.verbose = lp_norm, beta, kappa, iters, verbose

    def optimize(self, base: Tensor, qtype: qtype, axis: int | None) -> tuple[Tensor, Tensor]:
        scale, shift = super().optimize(base, qtype, axis)
        if axis is None:
            return scale, shift
        divisor = torch.where(scale == 0, 1, scale)
        dims, beta = axis_to_dim(base, axis), self.beta
        best, best_error = shift, torch.inf
        for _ in range(self.iters):
            codes = torch.round((base + shift) / divisor).clamp(0, 2**qtype.bits - 1)
            residual = base - (scale * codes - shift)
            error = float(residual.abs().mean())
            if error >= best_error:
                break
            best, best_error = shift, error
            size = residual.abs()
            shrunk = (size - size.pow(self.lp_norm - 1) / beta).clamp(min=0) * residual.sign()
            shift = torch.mean(scale * codes - (base - shrunk), dim=dims, keepdim=True)
            beta *= self.kappa
        return scale, best
