# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent: never more error, and no single code left that would be better."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto.algorithms.columns import round_columns
from quanto.algorithms.descend import descend
from quanto.quantizers import Parameters, Target, fit
from quanto.quantizers.spread import spread_parameters


def _errors(
    weight: torch.Tensor, elements: torch.Tensor, hessian: torch.Tensor, p: Parameters, t: Target
) -> torch.Tensor:
    scale, zero = spread_parameters(p, t, weight)
    error = ((elements if zero is None else elements - zero) * scale - weight).double()
    return ((error @ hessian.double()) * error).sum(1)


@pytest.mark.parametrize("zero", [None, torch.int8, torch.float16])
def test_ends_where_no_single_code_is_better(zero: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight, hessian = torch.randn(12, 24, generator=generator), x.T @ x / 64 + 0.1 * torch.eye(24)
    target = Target(quanto.qint3, (1, 8), torch.float32, zero is None, zero or torch.int8)
    p = fit(weight, target)
    start, _ = round_columns(weight, hessian, target, p)
    found, floats = descend(weight, start, hessian, target, p, 20)
    before, after = (_errors(weight, e, hessian, p, target) for e in (start, found))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.95 * before.sum()
    for column in range(24):
        for step in (-1, 1):
            other = found.clone()
            other[:, column] = (other[:, column] + step).clamp(quanto.qint3.qmin, quanto.qint3.qmax)
            assert (_errors(weight, other, hessian, p, target) >= after * (1 - 1e-4)).all()
    scale, shift = spread_parameters(p, target, weight)
    again = (floats / scale + (0 if shift is None else shift)).round().clamp(quanto.qint3.qmin, quanto.qint3.qmax)
    assert torch.equal(again, found)
    monkeypatch.setattr("quanto.algorithms.descend._COLUMNS", 5)  # lazy batches must not show
    lazy, _ = descend(weight, start, hessian, target, p, 20)
    assert (lazy != found).sum() <= 1  # a value in the middle of two codes
