# SPDX-License-Identifier: Apache-2.0
"""The quantized twin of tinylm's layer."""

from typing import ClassVar

import torch
from tinylm import Conv1D

from quanto import ops
from quanto.nn import QModule


class QConv1D(QModule, Conv1D):
    """`Conv1D` with a quantized weight."""

    quantized_parameters: ClassVar = {"weight": "transposed"}  # [in, out]: its rows are its columns
    operator = "linear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.frozen:
            return ops.linear(x, self.operand(), self.bias)
        return x @ self.effective() + self.bias  # trainable: rounded on the fly
