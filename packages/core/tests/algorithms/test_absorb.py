# SPDX-License-Identifier: Apache-2.0
"""Absorbers are found by trying, and leave what the block computes as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import Block
from quanto.algorithms.absorb import find_absorber, scale_inputs
from quanto.algorithms.step import as_float
from quanto.algorithms.stream import Stream


def _block(module: nn.Module, values: list[torch.Tensor]) -> Block:
    stream = Stream(values, [((), {})] * len(values))
    return Block("0", quanto.quantize(module, "int4"), stream, stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_layers_of_a_gated_block(dtype: torch.dtype, tiny: Any) -> None:
    block = _block(tiny().blocks[0].to(dtype), [5 * torch.randn(2, 8, 64, dtype=dtype)])
    with as_float(block.module):
        before = block.inputs.run(block.module, 0)[0]
    for group, name in ((["gate", "up"], "norm"), (["down"], "up")):  # the gate's output is not linear in its rows
        absorber = find_absorber(block, group)
        assert absorber is not None
        assert absorber.name == name
        width = block.layers()[group[0]].weight.shape[1]
        scale_inputs(absorber, [block.layers()[n] for n in group], torch.rand(width) + 0.5)
    with as_float(block.module):
        after = block.inputs.run(block.module, 0)[0]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
    assert not torch.equal(after, before)


class _Routed(nn.Module):
    """Something else reads the norm's output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.layer = nn.Linear(32, 32)
        self.router = nn.Parameter(torch.randn(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        out: torch.Tensor = self.layer(y) * torch.sigmoid(y @ self.router)[..., None]
        return out


def test_another_reader_excludes_the_norm() -> None:
    block = _block(_Routed(), [torch.randn(2, 8, 32)])
    weights = {k: v.clone() for k, v in block.module.state_dict().items()}
    assert find_absorber(block, ["layer"]) is None
    assert all(torch.equal(v, weights[k]) for k, v in block.module.state_dict().items())


class _Grouped(nn.Module):
    """Two heads of values, each read by two heads of queries."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self.head = head
        self.v = nn.Linear(64, 2 * head)
        self.o = nn.Linear(4 * head, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.v(x).unflatten(-1, (2, self.head)).repeat_interleave(2, -2).flatten(-2)
        out: torch.Tensor = self.o(values)
        return out


@pytest.mark.parametrize("head", [32, 24, 112])
def test_values_of_grouped_queries(head: int) -> None:
    block = _block(_Grouped(head), [torch.randn(2, 8, 64)])
    absorber = find_absorber(block, ["o"])
    assert absorber is not None
    assert (absorber.name, absorber.repeat, absorber.head) == ("v", 2, head)
    scale = torch.rand(2 * head) + 0.5
    torch.testing.assert_close(absorber.reduce(absorber.expand(scale)), scale)


class _Expert(nn.Module):
    """Sees the rows whose first element is positive; another layer sees the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up, self.down, self.other = (nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        there = x[..., :1] > 0
        return x + torch.where(there, self.down(torch.relu(self.up(y))), self.other(y))


def test_batches_that_miss_a_layer_say_nothing_about_it() -> None:
    torch.manual_seed(0)
    missed, mixed = -torch.rand(1, 4, 32), torch.randn(2, 16, 32)
    for values in ([missed, mixed], [missed] * 9 + [mixed], [torch.zeros(1, 4, 32), missed, mixed]):
        block = _block(_Expert(), values)
        assert find_absorber(block, ["up"]) is None, "the other layer reads the norm too"
        absorber = find_absorber(block, ["down"])
        assert absorber is not None
        assert absorber.name == "up"
    assert find_absorber(_block(_Expert(), [missed]), ["down"]) is None


def test_what_other_blocks_use_is_left_alone(tiny: Any) -> None:
    block = _block(tiny().blocks[0], [torch.randn(2, 8, 64)])
    block.shared = frozenset({block.module.norm})
    assert find_absorber(block, ["gate", "up"]) is None
    absorber = find_absorber(block, ["down"])
    assert absorber is not None
    assert absorber.name == "up"
    block.shared = frozenset({block.module.down})
    assert find_absorber(block, ["down"]) is None


class _Aside(nn.Module):
    """A reader of the norm whose part in the output is small."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.norm, self.layer, self.part = nn.LayerNorm(32), nn.Linear(32, 32), part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        out: torch.Tensor = x + self.layer(y) + self.part * y.roll(1, -1)
        return out


@pytest.mark.parametrize(("part", "taken"), [(0.0, True), (3e-3, False), (0.1, False)])
def test_a_small_reader_counts_too(part: float, taken: bool) -> None:
    torch.manual_seed(0)
    assert (find_absorber(_block(_Aside(part), [torch.randn(2, 8, 32)]), ["layer"]) is not None) == taken


def test_layers_that_nothing_reaches_cost_a_few_passes() -> None:
    block = _block(_Expert(), [-torch.rand(1, 4, 32)] * 100)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    block.module.register_forward_hook(count)
    assert find_absorber(block, ["down"]) is None
    assert calls <= 2 * 20
