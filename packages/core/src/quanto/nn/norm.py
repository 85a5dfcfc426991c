# SPDX-License-Identifier: Apache-2.0
"""Normalization that hands quantized outputs to the next layer; its own parameters stay floating."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..scheme import Scheme
from ..tensor import QTensor
from .base import QModule
from .handover import finish

__all__ = ["QLayerNorm", "QRMSNorm"]


class _QNorm(QModule):
    quantized_parameters: ClassVar[dict[str, str]] = {}
    quantizes_output = True
    _scheme: Scheme

    def init_quantized(self, scheme: Scheme, parameters: dict[str, str] | None = None) -> None:
        super().init_quantized(scheme, {})
        self.__dict__["_scheme"] = scheme

    @property
    def scheme(self) -> Scheme:
        return self._scheme

    def forward(self, x: Tensor) -> Tensor:
        """As the float module's."""
        if isinstance(x, QTensor):
            x = x.dequantize()
        return finish(self, super().forward(x))


class QLayerNorm(_QNorm, nn.LayerNorm):
    """`nn.LayerNorm` with a quantized output."""


class QRMSNorm(_QNorm, nn.RMSNorm):
    """`nn.RMSNorm` with a quantized output."""
