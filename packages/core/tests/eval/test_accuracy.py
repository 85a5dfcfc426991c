# SPDX-License-Identifier: Apache-2.0
"""Accuracy and agreement on logits that are given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from quanto.eval import accuracy, agreement

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 4.0], [1.0, 2.0, 3.0], [9.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 2, 2, 1])


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(("top", "expected"), [(1, 2), (2, 3), (3, 4), (7, 4)])
def test_top_k(top: int, expected: int) -> None:
    result = accuracy(same, [(LOGITS[:3], LABELS[:3]), (LOGITS[3:], LABELS[3:])], top=top)
    assert (result.correct, result.total, result.value) == (expected, 4, expected / 4)
    assert "label" in str(result)


def test_inputs_may_be_mappings_and_outputs_objects() -> None:
    result = accuracy(lambda pixels: SimpleNamespace(logits=pixels), [({"pixels": LOGITS}, LABELS)])
    assert result.to_dict()["correct"] == 2


def test_agreement_counts_equal_decisions() -> None:
    result = agreement(lambda x: -x, same, [LOGITS, torch.zeros(2, 3)])
    assert (result.correct, result.total) == (2, 6)  # of zeros both take the first
    assert "reference" in result.convention


def test_the_model_is_evaluated_and_restored() -> None:
    model = nn.Sequential(nn.Dropout(0.9)).train()
    assert accuracy(model, [(LOGITS, LABELS)]).correct == 2
    assert model.training


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batch"),
        ([(LOGITS, LABELS[:2])], r"shape \[4\]"),
        ([(LOGITS, LABELS + 1)], "from 0 to 2"),
        ([(LOGITS[0], LABELS[:1])], "floating logits"),
        ([(LOGITS * torch.nan, LABELS)], "NaN"),
    ],
)
def test_what_does_not_fit_is_named(batches: list[tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy(same, batches)


def test_agreement_needs_one_shape() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        agreement(lambda x: x[:, :2], same, [LOGITS])


def test_top_must_be_positive() -> None:
    with pytest.raises(ValueError, match="top"):
        accuracy(same, [(LOGITS, LABELS)], top=0)


def test_empty_batches_count_nothing() -> None:
    model = torch.nn.Linear(4, 3)
    batch = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    empty = torch.randn(0, 4), torch.zeros(0, dtype=torch.int64)
    assert accuracy(model, [empty, batch, empty]) == accuracy(model, [batch])
