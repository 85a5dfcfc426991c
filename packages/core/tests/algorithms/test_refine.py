# SPDX-License-Identifier: Apache-2.0
"""Refined parameters: less error under the Hessian, exact where there is an exact answer."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto.algorithms.columns import round_columns
from quanto.algorithms.refine import refine
from quanto.quantizers import Parameters, Target, fit


def _hessian(size: int) -> torch.Tensor:
    x = torch.randn(100, size, generator=torch.Generator().manual_seed(0)) @ torch.randn(size, size)
    return x.T @ x / 100 + 0.1 * torch.eye(size)


def _error(weight: torch.Tensor, elements: torch.Tensor, hessian: torch.Tensor, p: Parameters) -> torch.Tensor:
    zero = 0.0 if p.zero_point is None else p.zero_point.double().repeat_interleave(16, 1)
    error = (elements.double() - zero) * p.scale.double().repeat_interleave(16, 1) - weight.double()
    return ((error @ hessian.double()) * error).sum(1)


@pytest.mark.parametrize("zero", [None, torch.int8, torch.float16])
def test_never_worse_and_mostly_better(zero: torch.dtype | None) -> None:
    weight, hessian = torch.randn(32, 48), _hessian(48)
    target = Target(quanto.qint3, (1, 16), torch.float16, zero is None, zero or torch.int8)
    p = fit(weight, target)
    elements, _ = round_columns(weight, hessian, target, p)
    found = refine(weight, elements, hessian, target, p)
    assert found.scale.dtype == torch.float16
    assert zero is None or (found.zero_point is not None and found.zero_point.dtype == zero)
    before, after = (_error(weight, elements, hessian, q) for q in (p, found))
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.98 * before.sum()


def test_finds_what_was_there() -> None:
    elements = torch.randint(-4, 4, (8, 32)).float()
    scale, zero = torch.rand(8, 2) + 0.5, torch.randn(8, 2)
    weight = (elements - zero.repeat_interleave(16, 1)) * scale.repeat_interleave(16, 1)
    target = Target(quanto.qint3, (1, 16), torch.float32, False, torch.float32)
    start = Parameters(torch.ones(8, 2), torch.zeros(8, 2))
    found = refine(weight, elements, _hessian(32), target, start)
    torch.testing.assert_close(found.scale, scale, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.zero_point, zero, rtol=2e-2, atol=2e-2)


def test_what_it_does_not_serve_stays() -> None:
    weight = torch.randn(4, 20)
    for blocks in ((), (2, 10), (1, 16)):
        target = Target(quanto.qint3, blocks, torch.float32)
        p = fit(weight, target)
        assert refine(weight, weight, torch.eye(20), target, p) is p
