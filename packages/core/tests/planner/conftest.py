# SPDX-License-Identifier: Apache-2.0
"""A small classifier that knows something, and the data it learnt from."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn


class Task:
    """Points of 8 classes in 64 dimensions, most of which carry little."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.centres = torch.randn(8, 64) * torch.logspace(0.2, -1.5, 64)
        widths = [64, 128, 64, 128, 64]
        hidden = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.GELU())]
        self.model = nn.Sequential(*hidden, nn.Linear(64, 8))
        optimizer = torch.optim.Adam(self.model.parameters(), 3e-3)
        for step in range(150):
            x, y = self.batch(256, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            optimizer.step()
        self.model.requires_grad_(False)

    def batch(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(8, (count,), generator=generator)
        return self.centres[labels] + 1.5 * torch.randn(count, 64, generator=generator), labels


@pytest.fixture(scope="session")
def task() -> Task:
    return Task()
