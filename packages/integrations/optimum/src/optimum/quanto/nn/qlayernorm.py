# SPDX-License-Identifier: Apache-2.0
"""The quantized twin of `nn.LayerNorm`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .qmodule import QModuleMixin
from .registry import register_qmodule

__all__ = ["QLayerNorm"]


@register_qmodule(nn.LayerNorm)
class QLayerNorm(QModuleMixin, nn.LayerNorm):
    """`nn.LayerNorm` with quantized outputs; its weight stays float."""

    @classmethod
    def qcreate(
        cls, module: Any, weights: Any = None, activations: Any = None, optimizer: Any = None, device: Any = None
    ) -> Any:
        """See `QModuleMixin.qcreate`; None without activations, for then there is nothing to quantize."""
        if activations is None:
            return None
        return cls(
            module.normalized_shape,
            module.eps,
            module.elementwise_affine,
            module.bias is not None,
            dtype=None if module.weight is None else module.weight.dtype,
            device=device,
            activations=activations,
        )

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        return nn.LayerNorm.forward(self, input)
