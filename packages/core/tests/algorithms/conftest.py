# SPDX-License-Identifier: Apache-2.0
"""Small models that have what real ones have: residual blocks in a list, a norm, gated MLPs, grouped values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class TinyBlock(nn.Module):
    """A norm, two linear layers that read the same tensor, and one behind their product, on a residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, factor: float = 1.0) -> tuple[Tensor]:
        y = self.norm(x)
        return (x + factor * self.down(nn.functional.silu(self.gate(y)) * self.up(y)),)


class TinyModel(nn.Module):
    """Embedding, blocks in a list that hand over tuples, and a head."""

    def __init__(self, width: int = 64, depth: int = 3, words: int = 50) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(TinyBlock(width) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            (x,) = block(x, factor=0.5)
        y: Tensor = self.head(self.norm(x))
        return y


@pytest.fixture
def tiny() -> Callable[[], TinyModel]:
    """Makes the same model each time; inputs of its layers are correlated, as those of real models are."""

    def make() -> TinyModel:
        torch.manual_seed(0)
        model = TinyModel().eval()
        with torch.no_grad():
            mix = torch.randn(16, 64)
            model.embed.weight.copy_(torch.randn(50, 16) @ mix + 0.1 * torch.randn(50, 64))
        return model

    return make


@pytest.fixture
def batches() -> list[Tensor]:
    """Tokens `[4, 32]`, eight times."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (4, 32), generator=generator) for _ in range(8)]
