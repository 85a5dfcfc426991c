# SPDX-License-Identifier: Apache-2.0
"""Perplexity per word against probabilities that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quanto.eval import word_perplexity

CHAIN = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.9, 0.05, 0.05]], dtype=torch.float64)


def chain_model(tokens: Tensor) -> Tensor:
    return CHAIN.log()[tokens]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 100])
def test_each_token_counts_once_whatever_the_window(window: int) -> None:
    """A chain needs one token of context, which every window has."""
    documents = [([1, 2, 0, 0, 1], 2), ([2, 2], 1)]
    logs = [CHAIN[a, b].log().item() for a, b in [(0, 1), (1, 2), (2, 0), (0, 0), (0, 1), (0, 2), (2, 2)]]
    result = word_perplexity(chain_model, documents, prefix=0, window=window)
    assert result.nll == pytest.approx(-sum(logs) / 3, rel=1e-6)
    assert result.value == pytest.approx(math.exp(-sum(logs) / 3), rel=1e-6)
    assert result.tokens == 7
    assert "per word: 2 documents of 3 words, every one of 7 tokens" in result.convention


def test_the_last_window_reaches_back_to_full_length() -> None:
    seen: list[list[int]] = []

    def model(tokens: Tensor) -> Tensor:
        seen.append(tokens[0].tolist())
        return torch.zeros(*tokens.shape, 9)

    word_perplexity(model, [([1, 2, 3, 4, 5], 1)], prefix=0, window=3)
    assert seen == [[0, 1, 2], [2, 3, 4]]


@pytest.mark.parametrize(
    ("documents", "window", "message"),
    [
        ([], 4, "at least one"),
        ([([1], 0)], 4, "document 0 has 1 tokens and 0 words"),
        ([([], 1)], 4, "0 tokens"),
        ([([1], 1)], 0, "window must be"),
    ],
)
def test_bad_input_is_named(documents: list[tuple[list[int], int]], window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        word_perplexity(chain_model, documents, prefix=0, window=window)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="document 0 hold NaN"):
        word_perplexity(lambda t: torch.full((*t.shape, 3), torch.nan), [([1], 1)], prefix=0)
