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


class QLayerNorm(_QNorm, nn.LayerNorm):
    """`nn.LayerNorm` with a quantized output."""

    def forward(self, input: Tensor) -> Tensor:
        """As the float module's."""
        return finish(self, super().forward(_floating(input)))


class QRMSNorm(_QNorm, nn.RMSNorm):
    """`nn.RMSNorm` with a quantized output."""

    def forward(self, x: Tensor) -> Tensor:
        """As the float module's."""
        return finish(self, super().forward(_floating(x)))


def _floating(x: Tensor) -> Tensor:
    return x.dequantize() if isinstance(x, QTensor) else x
