# SPDX-License-Identifier: Apache-2.0
"""Inputs at the edges, for every way in which a number of tokens is served; the suite's problems are smaller."""

from __future__ import annotations

import pytest
import torch

import quanto

pytestmark = pytest.mark.gpu
SIZE, ROWS = 1152, 2064


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 9, 33, 100, 600])
@pytest.mark.parametrize("group", [16, 32, 64, 128, SIZE])
@pytest.mark.parametrize("qtype", ["int4", "int8"])
def test_nan_rows_strides_bias_and_no_tokens(qtype: str, group: int, tokens: int) -> None:
    torch.manual_seed(tokens)
    layer = torch.nn.Linear(SIZE, ROWS, device="cuda", dtype=torch.bfloat16)
    quanto.freeze(quanto.quantize(layer, qtype, group_size=group))
    assert quanto.explain(layer).layers[0].kernel == "cuda.linear_tiled"
    x = torch.randn(tokens, 2 * SIZE, device="cuda", dtype=torch.bfloat16)[:, ::2]
    values = layer.qtensor().dequantize(torch.float32).double()
    for bad in (False, True):
        if bad:
            x[tokens // 2, 5] = float("nan")
        want = x.double() @ values.t() + layer.bias.double()
        for _ in range(2):  # the second is served without any comparison
            got = layer(x).double()
            nan = want.isnan()
            assert torch.equal(got.isnan(), nan)
            largest = want[~nan].abs().max() if tokens > 1 or not bad else 1.0
            assert ((got - want).abs()[~nan] <= 1e-2 * largest).all()
    assert layer(x[:0]).shape == (0, ROWS)


@torch.no_grad()
def test_joined_layers_agree_with_each_alone() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj = torch.nn.Linear(SIZE, ROWS, bias=False, device="cuda", dtype=torch.bfloat16)
            self.up_proj = torch.nn.Linear(SIZE, 1024, bias=False, device="cuda", dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.gate_proj(x), self.up_proj(x)], -1)

    block = quanto.freeze(quanto.quantize(Block(), "int4"))
    inputs = [torch.randn(m, SIZE, device="cuda", dtype=torch.bfloat16) for m in (1, 17, 300)]
    wants = [block(x).double() for x in inputs]
    assert quanto.join(block) == [("gate_proj", "up_proj")]
    compiled = torch.compile(block, mode="reduce-overhead", fullgraph=True)
    for run in (block, compiled, compiled, compiled):
        for x, want in zip(inputs[: 1 if run is compiled else 3], wants, strict=False):
            assert ((run(x).double() - want).abs() <= 1e-2 * want.abs().max()).all()
