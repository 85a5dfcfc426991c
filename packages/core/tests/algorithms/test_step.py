# SPDX-License-Identifier: Apache-2.0
"""What steps stand on: float passes through quantized modules, codes put in place, losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms.step import Block, adopt, as_float, first_tensor
from quanto.algorithms.stream import Stream


def test_floating_passes() -> None:
    layer = nn.Linear(32, 8)
    x = torch.randn(4, 32)
    expected = layer(x)
    quanto.quantize(layer, "int2")
    assert not torch.equal(layer(x), expected)
    with as_float(layer):
        assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), expected)
    assert "forward" not in layer.__dict__


def test_adopted_codes_freeze() -> None:
    layer = quanto.quantize(nn.Linear(32, 8), "int4")
    q = quanto.quantize_tensor(layer.weight.detach(), layer.scheme)
    adopt(layer, q.codes, quanto.quantizers.Parameters(q.scale, q.zero_point, q.global_scale))
    assert layer.frozen
    assert torch.equal(layer.weight.dequantize(), q.dequantize())


def test_blocks_say_what_they_lack() -> None:
    block = Block("0", nn.Linear(2, 2), Stream([], []), Stream([], []))
    assert block.layers() == {}
    with pytest.raises(RuntimeError, match="call keep_original"):
        block.original  # noqa: B018 - the property raises
    with pytest.raises(TypeError, match="a block must return a tensor"):
        first_tensor({"x": 1})
