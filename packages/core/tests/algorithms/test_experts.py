# SPDX-License-Identifier: Apache-2.0
"""Fused experts: each calibrated on its own tokens, and on what all saw where that is little."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import quanto
from quanto.algorithms import GPTQ, Block, Pipeline
from quanto.algorithms.experts import expert_moments
from quanto.algorithms.stream import Stream
from quanto.nn import QParameters
from quanto.nn.registry import convert


class _Experts(nn.Module):
    """Four experts of one weight; token i goes to expert `where[i]`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        where = x[:, 0].long()
        return torch.stack([F.linear(row, self.weight[e]) for row, e in zip(x, where.tolist(), strict=True)])


class _QExperts(QParameters):
    operator = "grouped_linear"

    def float_forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].long().sort(stable=True)
        rows, ends = x[order.indices], torch.bincount(order.values, minlength=4).cumsum(0)
        if self.watch is not None:
            self.watch("weight", rows, ends)
        return self._float_class.forward(self, x)


def _model(**options: Any) -> Any:
    model = nn.Sequential(_Experts())
    convert(model[0], _QExperts).init_quantized(quanto.Scheme(**options), {"weight": "rows"})
    return model


def _tokens(experts: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(experts), 8, generator=generator) @ torch.randn(8, 32, generator=generator)
    x = x + 0.1 * torch.randn(len(experts), 32, generator=generator)
    x[:, 0] = torch.tensor(experts) + 0.5
    return x


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"zero_point": "int"}])
def test_every_expert_has_less_error_than_rounding(options: dict[str, Any]) -> None:
    x = _tokens([0] * 150 + [1] * 150 + [2] * 3)  # the last sees nothing
    rounded, found = (_model(weights="int3", group_size=16, **options) for _ in range(2))
    weight = rounded[0].weight.detach().clone()
    Pipeline().run(rounded, [x])
    Pipeline(GPTQ(correct=0)).run(found, [x])
    assert found[0].frozen
    assert found[0].weight_packed.shape == rounded[0].weight_packed.shape
    assert found[0].weight_scale.shape == rounded[0].weight_scale.shape
    for expert in range(4):
        mine = x[x[:, 0].long() == expert] if expert < 3 else x
        error, least = (
            ((m[0].weight.dequantize()[expert] - weight[expert]) @ mine.T).square().mean() for m in (found, rounded)
        )
        assert error < 0.8 * least, expert


def test_an_expert_goes_by_the_average_where_it_saw_little() -> None:
    x = _tokens([0] * 100 + [1] * 3)  # the others see nothing
    model = _model(weights="int4", group_size=16)
    block = Block("0", model[0], Stream([x], [((), {})]), Stream([x], [((), {})]))
    found = [m.hessian for m in expert_moments(block, "", "weight")]
    average = x.T @ x / len(x)
    prior = 0.1 * 32
    for hessian, mine in zip(found, (x[:100], x[100:], x[:0], x[:0]), strict=True):
        wanted = (mine.T @ mine + prior * average) / (len(mine) + prior)
        torch.testing.assert_close(hessian, wanted, rtol=1e-4, atol=1e-4)


def test_experts_that_no_token_reaches_at_all() -> None:
    model = _model(weights="int4", group_size=16)
    weight = model[0].weight.detach().clone()
    model[0].__dict__["float_forward"] = lambda x: x
    Pipeline("gptq").run(model, [_tokens([0, 1])])
    assert (model[0].weight.dequantize() - weight).abs().max() < 0.4


def test_shared_scales_are_left_to_the_scheme() -> None:
    one, other = (_model(weights="int8", granularity="tensor") for _ in range(2))
    Pipeline().run(one, [_tokens([0, 1])])
    Pipeline("gptq").run(other, [_tokens([0, 1])])
    assert torch.equal(one[0].weight_packed, other[0].weight_packed)
