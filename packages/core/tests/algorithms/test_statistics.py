# SPDX-License-Identifier: Apache-2.0
"""Second moments of inputs, and layers that share them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import Block
from quanto.algorithms.statistics import Moments, input_groups, moments
from quanto.algorithms.step import as_float
from quanto.algorithms.stream import Stream


def _block(tiny: Any, batches: list[torch.Tensor]) -> Block:
    model = quanto.quantize(tiny(), "int4", group_size=32)
    inputs = Stream([model.embed(b).detach() for b in batches], [((), {})] * len(batches))
    block = Block("blocks.0", model.blocks[0], inputs, inputs)
    block.keep_original()
    return block


def test_layers_that_read_one_tensor(tiny: Any, batches: list[torch.Tensor]) -> None:
    assert input_groups(_block(tiny, batches)) == [["gate", "up"], ["down"]]


def test_moments_are_means_over_tokens(tiny: Any, batches: list[torch.Tensor]) -> None:
    block = _block(tiny, batches)
    with torch.no_grad():
        x = torch.cat([block.module.norm(v).reshape(-1, 64) for v in block.inputs.values])
    found = moments(block, "up", crossed=True)
    assert found.tokens == 8 * 4 * 32
    assert found.hessian is not None
    assert found.cross is not None
    torch.testing.assert_close(found.hessian, x.T @ x / len(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cross, found.hessian, rtol=1e-4, atol=1e-4)


class _Mixture(nn.Module):
    """Two experts, of which the second sees every fourth token and the third none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        first = torch.arange(len(x)) % 4 > 0
        y[first], y[~first] = self.experts[0](x[first]), self.experts[1](x[~first])
        return y


@pytest.mark.parametrize("expert", [0, 1, 2])
def test_every_expert_sees_every_token(expert: int) -> None:
    module = quanto.quantize(_Mixture(), "int4")
    stream = Stream([torch.randn(40, 16)], [((), {})])
    block = Block("0", module, stream, stream)
    x = stream.values[0]
    found = moments(block, f"experts.{expert}.0")
    assert found.tokens == 40
    torch.testing.assert_close(found.hessian, x.T @ x / 40, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), as_float(module):
        hidden = torch.relu(module.experts[expert][0](x))
    inner = moments(block, f"experts.{expert}.2").hessian
    torch.testing.assert_close(inner, hidden.T @ hidden / 40, rtol=1e-4, atol=1e-4)


def test_streaming_adds_up() -> None:
    x, y = torch.randn(10, 4), torch.randn(10, 4)
    whole, parts = Moments(), Moments()
    whole.add(x, y)
    for piece, other in zip(x.split(3), y.split(3), strict=True):
        parts.add(piece, other)
    for a, b in ((whole.finish().hessian, parts.finish().hessian), (whole.cross, parts.cross)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["up", "down"])
def test_a_last_pass_keeps_what_the_float_block_returns(tiny: Any, batches: list[torch.Tensor], name: str) -> None:
    block = _block(tiny, batches)
    moments(block, "up", crossed=True)
    assert block.outputs == []
    found = moments(block, name, crossed=True, last=True)
    assert torch.equal(found.cross, moments(block, name, crossed=True).cross)  # type: ignore[arg-type]
    with torch.no_grad(), as_float(block.module):
        for value, output in zip(block.inputs.values, block.outputs, strict=True):
            torch.testing.assert_close(output, block.module(value)[0], rtol=0, atol=0)


class _Mixer(nn.Module):
    """Layers that read one tensor, its rows by another shape, its transpose, and what it is after a change."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.flat, self.columns, self.later = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        y: torch.Tensor = self.rows(x) + self.flat(x.flatten(0, 1)).view_as(x) + self.columns(x.mT).mT
        return y + self.later(x.mul_(2))


def test_views_are_told_apart() -> None:
    inputs = Stream([torch.randn(2, 16, 16)], [((), {})])
    block = Block("0", quanto.quantize(_Mixer(), "int4"), inputs, inputs)
    assert input_groups(block) == [["rows", "flat"], ["columns"], ["later"]]
