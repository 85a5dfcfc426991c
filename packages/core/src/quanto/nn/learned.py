# SPDX-License-Identifier: Apache-2.0
"""Scales that are trained with the weights they belong to (LSQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import reference
from ..quantizers import Parameters, Target
from ..quantizers.grid import round_scale, round_zero
from ..quantizers.spread import spread_parameters
from ..tensor.quantize import make_target, quantize_parts
from .activations import straight_through
from .slot import Slot

if TYPE_CHECKING:
    from .base import QModule

__all__ = ["encode", "forget", "prepare", "values"]


def prepare(module: QModule) -> None:
    """Gives trainable weights whose scheme says `learned` a scale, and a zero point, as parameters.

    `<name>_scale` is float32 and starts as the scheme's algorithm places it; `<name>_zero_point` likewise, trained if
    it is floating.
    """
    for name, slot in module._slots.items():
        if f"{name}_packed" in module._parameters:
            continue
        forget(module, name)
        if not slot.scheme.learned:
            continue
        rows = slot.rows(getattr(module, name).detach())
        _, scale, zero, _ = quantize_parts(rows, slot.scheme, slot.scheme.block_size(tuple(rows.shape)))
        module._parameters[f"{name}_scale"] = nn.Parameter(scale.float())
        if zero is not None:
            shifts = zero.is_floating_point()
            module._parameters[f"{name}_zero_point"] = nn.Parameter(zero.float() if shifts else zero, shifts)


def forget(module: QModule, name: str) -> None:
    """Takes the learned parameters of a trainable weight away."""
    for part in ("scale", "zero_point"):
        module._parameters.pop(f"{name}_{part}", None)


def _stored(module: QModule, name: str, part: float = 1.0) -> tuple[Target, Parameters]:
    """The parameters as they would be stored; a part of the gradient passes through the rounding."""
    slot = module._slots[name]
    target = make_target(slot.scheme, slot.scheme.block_size(slot.rows_shape()), slot.dtype)
    scale, zero = module._parameters[f"{name}_scale"], module._parameters.get(f"{name}_zero_point")
    assert scale is not None
    rounded = round_scale(scale.detach().clamp(min=0), target.scale_dtype)
    found = straight_through(scale * part, rounded)
    if zero is None or not zero.is_floating_point():
        return target, Parameters(found, zero)
    rounded = round_zero(zero.detach(), target.qtype, target.zero_dtype)
    return target, Parameters(found, straight_through(zero * part, rounded))


def values(module: QModule, name: str) -> Tensor:
    """The weight's quantized values, differentiable in weight, scale and zero point.

    Learned step size quantization (Esser et al., 2019, arXiv:1902.08153): rounding passes gradients straight through,
    so that the scale's is `round(x / s) - x / s` where nothing is clipped and the bound where it is, times
    `1 / sqrt(weights per scale * largest code)`, which balances it with the weights'. The zero point's is as in LSQ+
    (Bhalgat et al., 2020, arXiv:2004.09576).
    """
    slot: Slot = module._slots[name]
    parameter = getattr(module, name)
    rows = slot.rows(parameter).float()
    q, scales = slot.scheme.qtype, module._parameters[f"{name}_scale"]
    assert scales is not None
    target, p = _stored(module, name, (rows.numel() / max(scales.numel(), 1) * q.qmax) ** -0.5)
    scale, zero = spread_parameters(p, target, rows)
    steps = (rows / scale if zero is None else rows / scale + zero).clamp(q.qmin, q.qmax)
    elements = straight_through(steps, steps.detach().round())
    found = (elements if zero is None else elements - zero) * scale
    return slot.to_float(found.to(parameter.dtype))


@torch.no_grad()
def encode(module: QModule, name: str) -> list[Tensor | None]:
    """Codes, scale, zero point and global scale of a trainable weight, by the parameters it has learned."""
    target, p = _stored(module, name)
    rows = module._slots[name].rows(getattr(module, name).detach())
    scale = p.scale.to(target.scale_dtype)
    zero = None if p.zero_point is None else p.zero_point.to(target.zero_dtype)
    codes = reference.quantize(rows, scale, zero, None, target.qtype.name, target.block_size)
    return [codes, scale, zero, None]
