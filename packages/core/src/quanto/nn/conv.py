# SPDX-License-Identifier: Apache-2.0
"""Quantized twins of the convolutions: weights of `in * kernel` columns per output channel, computed in float."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..tensor import QTensor
from .activations import fake_quantize_activation
from .base import QModule
from .handover import static_scale

__all__ = ["QConv1d", "QConv2d", "QConv3d", "QConvTranspose1d", "QConvTranspose2d", "QConvTranspose3d"]


class _QConv(QModule):
    quantized_parameters: ClassVar[dict[str, str]] = {"weight": "flatten"}
    quantizes_input = True

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input (quantized and back if the scheme says so) and the weight in one dtype."""
        if isinstance(x, QTensor):
            x = x.dequantize()
        elif self.scheme.activations is not None:
            x = fake_quantize_activation(x, self.scheme.activations, static_scale(self), per_sample=True)
        if self.frozen and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x, self.effective(dtype=x.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """As the float module's."""
        x, weight = self._operands(input)
        bias = self.bias
        return self._conv_forward(x, weight, None if bias is None else bias.to(x.dtype))


class QConv1d(_QConv, nn.Conv1d):
    """`nn.Conv1d` with a quantized weight."""


class QConv2d(_QConv, nn.Conv2d):
    """`nn.Conv2d` with a quantized weight."""


class QConv3d(_QConv, nn.Conv3d):
    """`nn.Conv3d` with a quantized weight."""


class _QConvTranspose(_QConv):
    quantized_parameters: ClassVar[dict[str, str]] = {"weight": "transposed_flatten"}
    spatial: int
    function: str

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the float module's."""
        x, weight = self._operands(input)
        padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, self.spatial, self.dilation
        )
        call = getattr(nn.functional, self.function)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return call(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)


class QConvTranspose1d(_QConvTranspose, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` with a quantized weight."""

    spatial, function = 1, "conv_transpose1d"


class QConvTranspose2d(_QConvTranspose, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a quantized weight."""

    spatial, function = 2, "conv_transpose2d"


class QConvTranspose3d(_QConvTranspose, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with a quantized weight."""

    spatial, function = 3, "conv_transpose3d"
