# SPDX-License-Identifier: Apache-2.0
"""Frozen layers whose scales and zero points move by gradients, while their codes stay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import packing, reference
from .._hooks import first_input
from ..nn import correction
from ..nn.activations import fake_quantize_activation
from ..nn.base import QModule
from ..nn.handover import static_scale
from ..quantizers import Parameters, Target
from ..quantizers.grid import round_scale, round_zero
from ..quantizers.spread import spread_parameters
from ..tensor.quantize import make_target
from .step import adopt

__all__ = ["Movable", "movable_layers"]


class Movable:
    """One frozen linear layer.

    Args:
        layer: frozen, its weight in the canonical layout.
    """

    def __init__(self, layer: QModule) -> None:
        self.layer, slot, w = layer, layer._slots["weight"], layer.operand()
        self.codes, qtype = w.codes, slot.scheme.qtype
        self.elements = reference.decode(packing.unpack(w.codes, qtype.bits, w.size), qtype, torch.float32)
        assert w.scale is not None
        zero_dtype = torch.int8 if w.zero_point is None else w.zero_point.dtype
        self.target: Target = make_target(slot.scheme, w.block_size, slot.dtype)
        self.scale, self.zero, self.zero_dtype = w.scale.detach(), w.zero_point, zero_dtype
        self.factor = torch.ones_like(self.scale, dtype=torch.float32, requires_grad=True)
        shifts = self.zero is not None and self.zero.is_floating_point()
        self.shift = torch.zeros_like(self.factor, requires_grad=True) if shifts else None

    def parameters(self) -> list[Tensor]:
        """What moves: a factor of each scale, and what is added to each floating zero point."""
        return [self.factor] if self.shift is None else [self.factor, self.shift]

    def _stored(self) -> tuple[Tensor, Tensor | None]:
        zero = None if self.zero is None else self.zero.detach().float()
        return self.scale.float() * self.factor, zero if zero is None or self.shift is None else zero + self.shift

    def weight(self) -> Tensor:
        """The values, differentiable in what moves."""
        scale, zero = spread_parameters(Parameters(*self._stored()), self.target, self.elements)
        elements = self.elements if zero is None else self.elements - zero
        return (elements * scale).to(self.layer._slots["weight"].dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer computes, differentiable."""
        x = first_input(args, kwargs)
        qtype = self.layer.scheme.activations
        if qtype is not None:
            x = fake_quantize_activation(x, qtype, static_scale(self.layer))
        weight = self.weight()
        y = F.linear(x.to(weight.dtype), weight, self.layer._parameters.get("bias")).to(x.dtype)
        return correction.corrected(self.layer, x, y)

    @torch.no_grad()
    def freeze(self) -> None:
        """Gives the layer the parameters that were found."""
        scale, zero = self._stored()
        scale = round_scale(scale.clamp(min=0), self.scale.dtype).to(self.scale.dtype)
        if zero is not None:
            zero = round_zero(zero, self.target.qtype, self.zero_dtype).to(self.zero_dtype)
        adopt(self.layer, self.codes, Parameters(scale, zero))


def movable_layers(model: nn.Module) -> list[Movable]:
    """The frozen linear layers whose codes no other module holds and whose scales have 16 bits or more."""
    found = [m for m in model.modules() if isinstance(m, QModule)]
    held = Counter(id(m._parameters.get("weight_packed")) for m in found)
    out = []
    for module in found:
        if module.operator != "linear" or not module._slots or not module.frozen:
            continue
        module.arrange("canonical")
        scale = module._parameters["weight_scale"]
        assert scale is not None
        alone = held[id(module._parameters["weight_packed"])] == 1
        if alone and scale.dtype.itemsize > 1 and module._parameters.get("weight_global_scale") is None:
            out.append(Movable(module))
    return out
