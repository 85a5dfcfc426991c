# SPDX-License-Identifier: Apache-2.0
"""The twin of transformers' `Conv1D`, a linear layer whose weight lies transposed, as GPT-2 has it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from quanto.nn import QLinear, QModule
from quanto.nn.activations import fake_quantize_activation
from quanto.nn.handover import finish, static_scale
from quanto.tensor import QTensor

__all__ = ["QConv1D"]


class QConv1D(QModule, Conv1D):  # type: ignore[misc]
    """`Conv1D` with a quantized weight `[in, out]`, stored as rows `[out, in]`."""

    quantized_parameters: ClassVar[dict[str, str]] = {"weight": "transposed"}
    quantizes_input = True
    quantizes_output = True

    forward = QLinear.forward
    _quantized = QLinear._quantized

    def _simulate(self, x: Tensor) -> Tensor:
        weight = self.effective()
        if isinstance(x, QTensor):
            x = x.dequantize()
        elif self.scheme.activations is not None:
            x = fake_quantize_activation(x, self.scheme.activations, static_scale(self))
        return finish(self, F.linear(x, weight.t(), self.bias))
