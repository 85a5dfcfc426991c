# SPDX-License-Identifier: Apache-2.0
"""Perplexity against values that can be computed by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from quanto.eval import Perplexity, perplexity

# P(next | current) of a chain with three states.
CHAIN = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.9, 0.05, 0.05]], dtype=torch.float64)


def chain_model(tokens: Tensor) -> Tensor:
    """Logits `[batch, block, 3]` of the chain, shifted by a constant per token as a real model's are."""
    return CHAIN.log()[tokens] + tokens.unsqueeze(-1) * 3.0


def uniform(vocabulary: int, dtype: torch.dtype = torch.float64):
    return lambda tokens: torch.zeros(*tokens.shape, vocabulary, dtype=dtype)


@pytest.mark.parametrize("vocabulary", [2, 50, 49152])
def test_uniform_logits_give_the_vocabulary_size(vocabulary: int) -> None:
    result = perplexity(uniform(vocabulary), [0, 1, 1, 0] * 4, block=8)
    assert result.value == pytest.approx(vocabulary, rel=1e-12)
    assert result.nll == pytest.approx(math.log(vocabulary), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_are_not_summed_in_low_precision(dtype: torch.dtype) -> None:
    # 8,191 terms of log(50): a running sum in bf16 would stop growing at 1,024.
    result = perplexity(uniform(50, dtype), torch.zeros(8192, dtype=torch.long), block=8192)
    assert result.value == pytest.approx(50, rel=1e-6)


def test_markov_chain_by_hand() -> None:
    # Two blocks of four: 0→1, 1→1, 1→2 and 2→0, 0→0, 0→2. The step 2→2 between the blocks doesn't count.
    probabilities = [0.25, 0.75, 0.125, 0.9, 0.5, 0.25]
    result = perplexity(chain_model, [0, 1, 1, 2, 2, 0, 0, 2], block=4)
    assert result.nll == pytest.approx(-sum(map(math.log, probabilities)) / 6, rel=1e-12)
    assert result.value == pytest.approx(math.prod(probabilities) ** (-1 / 6), rel=1e-12)
    assert (result.tokens, result.blocks) == (6, 2)


def test_it_is_the_exponential_of_the_mean_not_the_mean_of_exponentials() -> None:
    # Block one has probabilities 1/2, block two 1/8: exp of the mean is 4, the mean of perplexities would be 5.
    halves, eighths = [0.5] + [0.5 / 7] * 7, [0.125] * 8

    def model(tokens: Tensor) -> Tensor:
        rows = [halves if block[0] == 0 else eighths for block in tokens]
        return torch.tensor(rows, dtype=torch.float64).log().unsqueeze(1).expand(-1, tokens.shape[1], -1)

    assert perplexity(model, [0, 0, 0, 1, 1, 1], block=3).value == pytest.approx(4, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batch_size_changes_nothing_but_the_calls(batch_size: int) -> None:
    tokens = torch.randint(3, (7 * 16 + 5,), generator=torch.Generator().manual_seed(0))
    shapes = []

    def model(batch: Tensor) -> Tensor:
        shapes.append(tuple(batch.shape))
        return chain_model(batch)

    result = perplexity(model, tokens, block=16, batch_size=batch_size)
    whole = tokens[: 7 * 16].view(7, 16)
    expected = -CHAIN[whole[:, :-1], whole[:, 1:]].log().mean().item()
    assert result.nll == pytest.approx(expected, rel=1e-12)
    assert sum(rows for rows, _ in shapes) == 7
    assert max(rows for rows, _ in shapes) == min(batch_size, 7)
    assert {length for _, length in shapes} == {16}


def test_the_convention_says_what_was_measured() -> None:
    result = perplexity(chain_model, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], block=4)
    assert result.convention == (
        "2 blocks of 4 tokens, no overlap, first token of each block not predicted, last 2 tokens left out"
    )
    assert str(result) == f"{result.value:.4g} ({result.convention})"
    one = perplexity(chain_model, [0, 1, 2, 0], block=4)
    assert one.convention == "1 block of 4 tokens, no overlap, first token of each block not predicted"


def test_result_is_frozen() -> None:
    result = Perplexity(1.0, 0.0, 1, 1, "")
    with pytest.raises(FrozenInstanceError):
        result.value = 2.0  # type: ignore[misc]


def test_an_output_with_logits_and_every_integer_dtype() -> None:
    expected = perplexity(chain_model, [0, 1, 2, 0], block=4)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint16, torch.uint8):
        tokens = torch.tensor([0, 1, 2, 0], dtype=dtype)
        assert perplexity(lambda t: SimpleNamespace(logits=chain_model(t)), tokens, block=4) == expected


def test_a_token_of_probability_zero_is_infinite() -> None:
    def certain(tokens: Tensor) -> Tensor:
        logits = torch.full((*tokens.shape, 3), -math.inf)
        logits[..., 0] = 0.0
        return logits

    assert perplexity(certain, [0, 0, 0, 0], block=4).value == 1.0
    assert perplexity(certain, [0, 0, 1, 0], block=4).value == math.inf


def test_a_finite_loss_that_exp_cannot_hold() -> None:
    def sure(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, 2, dtype=torch.float64)
        logits[..., 0] = 1e4
        return logits

    result = perplexity(sure, [1, 1, 1, 1], block=4)
    assert result.value == math.inf
    assert result.nll == pytest.approx(1e4)


class Dropping(nn.Module):
    """An embedding with dropout of everything, and one part that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 3)
        self.dropout = nn.Dropout(1.0)
        self.embedding.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.dropout(self.embedding(tokens))


def test_a_module_is_measured_in_evaluation_mode_and_gets_its_flags_back() -> None:
    model = Dropping().train()
    model.embedding.eval()
    with torch.no_grad():
        model.embedding.weight.copy_(CHAIN.log())
    result = perplexity(model, [0, 1, 1, 2], block=4)
    assert result.value == pytest.approx((0.25 * 0.75 * 0.125) ** (-1 / 3), rel=1e-5)
    assert (model.training, model.dropout.training, model.embedding.training) == (True, True, False)


def test_flags_come_back_after_an_error() -> None:
    model = Dropping().train()
    with pytest.raises(ValueError, match="fewer than one block"):
        perplexity(model, [0], block=4)
    with pytest.raises(IndexError):
        perplexity(model, [0, 1, 2, 9], block=4)
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        ([0, 1, 2], {"block": 4}, ValueError, "3 tokens are fewer than one block of 4"),
        ([], {"block": 4}, ValueError, "0 tokens are fewer"),
        ([0, 1, 2], {"block": 1}, ValueError, "at least 2 tokens"),
        ([0, 1, 2], {"block": 2, "batch_size": 0}, ValueError, "batch_size"),
        (torch.zeros(1, 8, dtype=torch.long), {"block": 4}, ValueError, r"shape \[1, 8\]; pass tokens\[0\]"),
        (torch.zeros(2, 8, dtype=torch.long), {"block": 4}, ValueError, r"shape \[2, 8\]$"),
        (torch.zeros(8), {"block": 4}, TypeError, "integers, got torch.float32"),
        (torch.zeros(8, dtype=torch.bool), {"block": 4}, TypeError, "integers, got torch.bool"),
        (torch.tensor([0, 1, 2, 3]), {"block": 4}, ValueError, "token 3 is outside of the model's vocabulary of 3"),
    ],
)
def test_tokens_that_cannot_be_measured(tokens, options, error, message) -> None:
    model = chain_model if not isinstance(tokens, Tensor) else uniform(3)
    with pytest.raises(error, match=message):
        perplexity(model, tokens, **options)


def test_negative_token() -> None:
    with pytest.raises(ValueError, match="token -1 is outside"):
        perplexity(uniform(3), [0, -1, 2, 1], block=4)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (torch.zeros(1, 3, 5), ValueError, r"shape \[1, 4, vocabulary\], got \[1, 3, 5\]"),
        (torch.zeros(4, 5), ValueError, r"got \[4, 5\]"),
        (torch.zeros(1, 4, 5, dtype=torch.long), TypeError, "floating-point, got torch.int64"),
        ({"loss": 1}, TypeError, "got dict"),
    ],
)
def test_logits_of_another_kind(output, error, message) -> None:
    with pytest.raises(error, match=message):
        perplexity(lambda _: output, [0, 1, 2, 0], block=4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_distribution_name_their_place(bad: float) -> None:
    def model(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, 5)
        logits[tokens[:, 0] == 1, 2, 3] = bad
        return logits

    tokens = [0, 0, 0, 0] * 3 + [1, 0, 0, 0] + [0, 0, 0, 0]
    for batch_size in (1, 2, 5):
        with pytest.raises(ValueError, match="logits of block 3, position 2 hold NaN or infinity"):
            perplexity(model, tokens, block=4, batch_size=batch_size)


def test_progress_counts_batches(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    perplexity(chain_model, [0, 1, 2, 0] * 6, block=4, batch_size=2, progress=True)
    assert "3/3" in capsys.readouterr().err
    perplexity(chain_model, [0, 1, 2, 0] * 6, block=4, batch_size=2)  # standard error is no terminal here
    perplexity(chain_model, [0, 1, 2, 0] * 6, block=4, batch_size=2, progress=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_it_never_imports_transformers() -> None:
    program = "import sys, quanto.eval; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
