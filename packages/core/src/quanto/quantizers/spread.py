# SPDX-License-Identifier: Apache-2.0
"""Scales and zero points element by element."""

from __future__ import annotations

from torch import Tensor

from ..blocks import merge, scale_shape, split
from .base import Parameters, Target

__all__ = ["spread_parameters"]


def spread_parameters(p: Parameters, target: Target, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of every element of a weight, float32; differentiable in both."""
    scale = p.scale.float() if p.global_scale is None else p.scale.float() * p.global_scale.float()
    return _each(scale, target, weight), None if p.zero_point is None else _each(p.zero_point.float(), target, weight)


def _each(values: Tensor, target: Target, weight: Tensor) -> Tensor:
    if not target.block_size:
        return values.expand(weight.shape)
    assert values.shape == scale_shape(weight.shape, target.block_size)
    blocks = split(weight, target.block_size)
    return merge(values[:, None, :, None].expand(blocks.shape), weight.shape)
