# SPDX-License-Identifier: Apache-2.0
"""Text drawn from a model: as its own predictions say, the same each time, with a cache and without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from quanto.algorithms import generate_samples


class _Successor(nn.Module):
    """Predicts the next number, or with one chance in ten the one after it."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        chances = torch.zeros(*tokens.shape, 8)
        chances.scatter_(-1, (tokens + 1)[..., None] % 8, 0.9)
        chances.scatter_(-1, (tokens + 2)[..., None] % 8, 0.1)
        return chances.log()


class _Cached(_Successor):
    """Remembers what it has read, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.widths: list[int] = []

    def forward(self, tokens: torch.Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        self.widths.append(tokens.shape[1])
        return SimpleNamespace(logits=super().forward(tokens), past_key_values=(past_key_values or 0) + 1)


def test_follows_the_predictions() -> None:
    found = generate_samples(_Successor(), 50, 20, batch_size=16, parallel=32)
    assert [tuple(b.shape) for b in found] == [(16, 20), (16, 20), (16, 20), (2, 20)]
    tokens = torch.cat(found)
    steps = (tokens[:, 1:] - tokens[:, :-1]) % 8
    assert ((steps == 1) | (steps == 2)).all()
    assert 0.05 < (steps == 2).float().mean() < 0.15
    assert tokens[:, 0].unique().numel() == 8
    again = generate_samples(_Successor(), 50, 20, batch_size=16, parallel=32)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], generate_samples(_Successor(), 16, 20, batch_size=16, parallel=32, seed=1)[0])


def test_reads_each_token_once_where_there_is_a_cache() -> None:
    model = _Cached()
    found = generate_samples(model, 4, 10)
    assert torch.equal(found[0], generate_samples(_Successor(), 4, 10)[0])
    assert model.widths == [1] * 10
    assert model.config.use_cache


def test_refuses_what_predicts_nothing() -> None:
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        generate_samples(_Successor(), length=0)
    with pytest.raises(ValueError, match=r"the model returns no logits \[n, length, words\]"):
        generate_samples(nn.Flatten(), 2, 2)
