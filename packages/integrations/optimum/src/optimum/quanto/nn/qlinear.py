# SPDX-License-Identifier: Apache-2.0
"""The quantized twin of `nn.Linear`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .qmodule import QModuleMixin
from .registry import register_qmodule

__all__ = ["QLinear"]


@register_qmodule(nn.Linear)
class QLinear(QModuleMixin, nn.Linear):
    """`nn.Linear` with a quantized weight, and quantized inputs and outputs where activations are given."""

    @classmethod
    def qcreate(
        cls, module: Any, weights: Any = None, activations: Any = None, optimizer: Any = None, device: Any = None
    ) -> Any:
        """See `QModuleMixin.qcreate`."""
        return cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            dtype=module.weight.dtype,
            device=device,
            weights=weights,
            activations=activations,
            optimizer=optimizer,
            quantize_input=True,
        )

    def forward(self, input: Tensor) -> Tensor:
        """`[…, in]` to `[…, out]`."""
        weight = self.qweight
        return F.linear(input, self.weight if weight is None else weight, self.bias)
