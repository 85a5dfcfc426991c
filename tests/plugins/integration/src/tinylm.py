# SPDX-License-Identifier: Apache-2.0
"""A library with a layer of its own. It stands for any: this module knows nothing of quanto."""

import torch
from torch import nn


class Conv1D(nn.Module):
    """A linear layer whose weight is `[in, out]`, as in GPT-2."""

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, features) * 0.02)
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias
