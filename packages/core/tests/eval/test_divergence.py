# SPDX-License-Identifier: Apache-2.0
"""KL divergence and agreement against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from quanto.eval import divergence, perplexity

P = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.9, 0.05, 0.05]], dtype=torch.float64)
Q = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.8, 0.1, 0.1]], dtype=torch.float64)
TOKENS = [0, 1, 2, 0, 0, 2, 1, 1, 2]


def chain(matrix: Tensor):
    return lambda tokens: matrix.log()[tokens] + tokens.unsqueeze(-1)


def test_divergence_is_the_sum_over_the_vocabulary() -> None:
    result = divergence(chain(Q), chain(P), TOKENS, block=4)
    kl = (P * (P / Q).log()).sum(-1)
    contexts = [0, 1, 2, 0, 2, 1]  # of two blocks, without the last token of each
    assert result.mean == pytest.approx(kl[contexts].mean().item(), rel=1e-5)
    assert result.max == pytest.approx(kl.max().item(), rel=1e-5)
    assert result.agreement == pytest.approx(4 / 6)  # state 0 prefers another token
    assert result.tokens == 6
    assert "6 positions, 2 blocks of 4 tokens" in str(result)


def test_rise_is_the_difference_of_log_perplexities() -> None:
    result = divergence(chain(Q), chain(P), TOKENS, block=4, batch_size=2)
    one, other = (perplexity(chain(m), TOKENS, block=4).nll for m in (Q, P))
    assert result.rise == pytest.approx(one - other, abs=1e-6)


def test_a_model_does_not_diverge_from_itself_even_where_it_excludes_tokens() -> None:
    sure = torch.tensor([[0.0, -math.inf, 1.0]] * 3)
    result = divergence(lambda t: sure[t], lambda t: sure[t], TOKENS, block=3)
    assert (result.mean, result.max, result.agreement) == (0, 0, 1)


def test_excluding_what_the_reference_allows_diverges_without_bound() -> None:
    sure = torch.tensor([[0.0, -math.inf, 1.0]] * 3)
    assert divergence(lambda t: sure[t], chain(P), TOKENS, block=3).mean == math.inf


def test_modes_are_given_back_and_results_json_ready() -> None:
    model = nn.Embedding(3, 3).train()
    result = divergence(model, nn.Embedding(3, 3).eval(), TOKENS, block=3)
    assert model.training
    assert set(result.to_dict()) >= {"mean", "agreement", "rise", "convention"}


def test_vocabularies_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="vocabularies of 3 and 4"):
        divergence(nn.Embedding(3, 3), nn.Embedding(3, 4), TOKENS, block=3)


def test_nan_is_refused() -> None:
    def broken(tokens: torch.Tensor) -> torch.Tensor:
        return torch.full((*tokens.shape, 3), torch.nan)

    with pytest.raises(ValueError, match="logits of the model hold NaN"):
        divergence(broken, chain(P), TOKENS, block=3)
    with pytest.raises(ValueError, match="logits of the reference hold NaN"):
        divergence(chain(Q), broken, TOKENS, block=3)


@pytest.mark.parametrize(("options", "message"), [({"block": 1}, "at least 2"), ({"batch_size": 0}, "batch_size")])
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(chain(Q), chain(P), TOKENS, **{"block": 3, **options})
