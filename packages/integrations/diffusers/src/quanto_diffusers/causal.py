# SPDX-License-Identifier: Apache-2.0
"""Twins of the causal convolutions of video autoencoders."""

from __future__ import annotations

from typing import ClassVar

from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from quanto.nn import QConv3d, QModule

__all__ = ["QQwenImageCausalConv3d", "QWanCausalConv3d"]


class _Causal(QModule):
    """Keeps the padding of the float class, whose forward ends in that of `nn.Conv3d`."""

    quantized_parameters: ClassVar[dict[str, str]] = {"weight": "flatten"}
    quantizes_input = True

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = QConv3d._operands(self, input)  # type: ignore[arg-type]
        bias = None if bias is None else bias.to(x.dtype)
        made: Tensor = nn.Conv3d._conv_forward(self, x, weight, bias)  # type: ignore[arg-type]
        return made


class QWanCausalConv3d(_Causal, WanCausalConv3d):  # type: ignore[misc]
    """`WanCausalConv3d` with a quantized weight."""


class QQwenImageCausalConv3d(_Causal, QwenImageCausalConv3d):  # type: ignore[misc]
    """`QwenImageCausalConv3d` with a quantized weight."""
