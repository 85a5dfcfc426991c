# SPDX-License-Identifier: Apache-2.0
"""Frozen layers that move: the layer's own output and gradients, and what is stored in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms.movable import movable_layers
from quanto.algorithms.step import computing

SCHEMES: list[dict[str, Any]] = [
    {"weights": "int4", "group_size": 16, "algorithm": "mse"},
    {"weights": "int3", "symmetric": True, "group_size": 16},
    {"weights": "int4", "zero_point": "int", "group_size": 16},
    {"weights": "int8", "activations": "int8"},
    {"weights": "nf4"},
    {"weights": "int4", "granularity": "tensor"},
]


@pytest.mark.parametrize("options", SCHEMES)
def test_computes_what_the_layer_does_and_keeps_what_moved(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = quanto.freeze(quanto.quantize(nn.Linear(40, 6), **options))
    x, expected = torch.randn(5, 40), None
    expected = layer(x)
    (movable,) = movable_layers(layer)
    with computing([(movable.layer, movable.forward)]):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        layer(x).square().sum().backward()
    for parameter in movable.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    codes = layer.weight_packed.clone()
    with torch.no_grad():
        movable.factor.mul_(1.5)
    movable.freeze()
    assert torch.equal(layer.weight_packed, codes)
    bias = layer.bias if options.get("activations") is None else 0
    if options.get("activations") is None:
        torch.testing.assert_close(layer(x) - bias, 1.5 * (expected - bias), rtol=2e-3, atol=2e-3)


def test_leaves_out_what_cannot_move() -> None:
    tied = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False), nn.Linear(32, 32))
    tied[1].weight = tied[0].weight
    quanto.freeze(quanto.quantize(tied, "int8"))
    assert [m.layer for m in movable_layers(tied)] == [tied[2]]
    assert movable_layers(quanto.freeze(quanto.quantize(nn.Linear(32, 8), "mxfp4"))) == []
    assert movable_layers(quanto.quantize(nn.Linear(32, 8), "int4")) == []
