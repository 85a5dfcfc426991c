# SPDX-License-Identifier: Apache-2.0
"""The quantized twin of `nn.Linear`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..tensor import QTensor
from ..tensor.functions import is_activation
from ..weight import Weight
from . import correction
from .activations import fake_quantize_activation
from .base import QModule
from .handover import finish, static_scale

__all__ = ["QLinear"]

_any_autocast = torch._C._is_any_autocast_enabled  # 0.05 us, where asking for one device takes 0.7


class QLinear(QModule, nn.Linear):
    """`nn.Linear` with a quantized weight `[out, in]`, and quantized inputs if the scheme says so."""

    operator = "linear"
    quantizes_input = True
    quantizes_output = True

    def prepare(self) -> None:
        """See `QModule.prepare`; also the correction."""
        super().prepare()
        correction.prepare(self)

    def freeze(self, shared: dict[tuple[int, str], list[Tensor | None]] | None = None) -> None:
        """See `QModule.freeze`; a correction that was not trained is made for what the codes lose."""
        weight = None if self.frozen or not correction.is_unset(self) else self.weight
        super().freeze(shared)
        if weight is not None and not weight.is_meta:
            correction.store(self, weight)

    def effective(self, name: str = "weight", dtype: torch.dtype | None = None) -> Tensor:
        """See `QModule.effective`; the correction is added."""
        weight = super().effective(name, dtype)
        down, up = self._parameters.get(correction.DOWN), self._parameters.get(correction.UP)
        return weight if down is None or up is None else weight + (up @ down).to(weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """`[…, in]` to `[…, out]`, in the input's dtype (autocast's where it is on)."""
        seat = self._joined
        if seat is not None and not _any_autocast():
            part = seat.joined.take(seat, self._parameters, input)
            if part is not None:
                return part
        x = input
        p, slot = self._parameters, self._slots["weight"]
        codes = p.get("weight_packed")
        if codes is None:
            return self._simulate(x)
        if _any_autocast() and torch.is_autocast_enabled(codes.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(codes.device.type))
        w = Weight(
            codes,
            p["weight_scale"],  # type: ignore[arg-type]
            p.get("weight_zero_point"),
            p.get("weight_global_scale"),
            slot.qtype,
            slot.block_size,
            slot.size,
            slot.key,
        )
        bias = p["bias"] if "bias" in p else self.bias  # noqa: SIM401 - a default would be looked up every time
        if slot.activations is None:
            y = ops.linear(x, w, bias)
            return y if slot.rank is None else correction.corrected(self, x, y)
        return self._quantized(x, w, bias, slot.activations)

    def _quantized(self, x: Tensor, w: Weight, bias: Tensor | None, qtype: str) -> Tensor:
        scale = static_scale(self)
        if isinstance(x, QTensor):
            if is_activation(x) and x.qtype.name == qtype and self.scheme.rank is None:
                out_scale = self.output_scale
                y = ops.scaled_linear(x.codes, x.scale, w, bias, qtype, out_scale, x.dtype)
                if out_scale is None:
                    return y
                made = QTensor(y, out_scale, qtype=qtype, dtype=x.dtype)
                made.producer = self
                return made
            x = x.dequantize()
        return finish(self, correction.corrected(self, x, ops.quantized_linear(x, w, bias, qtype, scale)))

    def _simulate(self, x: Tensor) -> Tensor:
        """Trainable: the float weight rounded on the fly, straight-through."""
        weight = self.effective()
        qtype = self.scheme.activations
        if isinstance(x, QTensor):
            x = x.dequantize()
        elif qtype is not None:
            x = fake_quantize_activation(x, qtype, static_scale(self))
        return finish(self, F.linear(x, weight, self.bias))
