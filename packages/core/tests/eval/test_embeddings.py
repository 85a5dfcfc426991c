# SPDX-License-Identifier: Apache-2.0
"""Ranks, cosines and retrieval on embeddings that are known."""

from __future__ import annotations

import pytest
import torch

from quanto.eval import retrieval, similarity, spearman


def test_spearman_of_known_rankings() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]] * 4)
    b = torch.tensor([[10.0, 20, 30, 40, 50], [5.0, 4, 3, 2, 1], [1.0, 3, 2, 5, 4], [1.0, 1, 2, 3, 3]])
    # 1 - 6 sum d² / (n (n² - 1)) for rankings without ties; the last is Pearson's of the mean ranks
    expected = torch.tensor([1, -1, 0.8, 9.0 / (10 * 9.0) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(spearman(a, b), expected)


def test_equal_values_have_no_ranking() -> None:
    assert spearman(torch.ones(3), torch.arange(3.0)).isnan()


def test_scaled_embeddings_are_the_same_and_turned_ones_rank_alike() -> None:
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    result = similarity(3 * x, x)
    assert (result.cosine, result.least, result.spearman) == pytest.approx((1, 1, 1))
    turned = similarity(x.flip(1), x)
    assert turned.cosine < 0.9
    assert turned.spearman == pytest.approx(1)
    assert similarity(torch.cat([x, x], 1), x).cosine != similarity(x, x).cosine  # NaN: nothing to compare
    assert "Spearman" in str(result)


def test_retrieval_ranks() -> None:
    documents = torch.eye(12)
    queries = torch.eye(12)
    queries[1] = torch.tensor([0.0, 1, 2] + [0] * 9)  # its document comes second
    queries[2] = 12 - torch.arange(12.0)  # third
    queries[11] = 12 - torch.arange(12.0)  # twelfth: counts nothing
    result = retrieval(queries, documents)
    assert result.recall == pytest.approx(9 / 12)
    assert result.mrr == pytest.approx((9 + 1 / 2 + 1 / 3) / 12)
    assert result.to_dict()["count"] == 12


def test_an_encoder_that_tells_nothing_apart_finds_nothing() -> None:
    assert retrieval(torch.ones(5, 3), torch.ones(5, 3)).recall == 0


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (torch.ones(3), torch.ones(3), "floating"),
        (torch.ones(3, 2).long(), torch.ones(3, 2), "floating"),
        (torch.full((3, 2), torch.nan), torch.ones(3, 2), "NaN"),
        (torch.ones(4, 2), torch.ones(3, 2), "4 and"),
    ],
)
def test_bad_embeddings(one: torch.Tensor, other: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity(one, other)
    with pytest.raises(ValueError):
        retrieval(one, other)
