# SPDX-License-Identifier: Apache-2.0
"""The quantized twin of `nn.Conv2d`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .qmodule import QModuleMixin
from .registry import register_qmodule

__all__ = ["QConv2d"]


@register_qmodule(nn.Conv2d)
class QConv2d(QModuleMixin, nn.Conv2d):
    """`nn.Conv2d` with a quantized weight, and quantized outputs where activations are given."""

    @classmethod
    def qcreate(
        cls, module: Any, weights: Any = None, activations: Any = None, optimizer: Any = None, device: Any = None
    ) -> Any:
        """See `QModuleMixin.qcreate`."""
        return cls(
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel_size=module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
            dtype=module.weight.dtype,
            device=device,
            weights=weights,
            activations=activations,
            optimizer=optimizer,
        )

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, in, height, width]` to `[batch, out, …]`."""
        weight = self.qweight
        out: Tensor = self._conv_forward(input, self.weight if weight is None else weight, self.bias)
        return out
