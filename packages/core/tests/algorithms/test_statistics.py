# SPDX-License-Identifier: Apache-2.0
"""Second moments of inputs, and layers that share them."""

from __future__ import annotations

from typing import Any

import torch

import quanto
from quanto.algorithms import Block
from quanto.algorithms.statistics import Moments, input_groups, moments
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
    found = moments(block, "up", block.layers()["up"], crossed=True)
    assert found.tokens == 8 * 4 * 32
    assert found.hessian is not None
    assert found.cross is not None
    torch.testing.assert_close(found.hessian, x.T @ x / len(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cross, found.hessian, rtol=1e-4, atol=1e-4)


def test_streaming_adds_up() -> None:
    x, y = torch.randn(10, 4), torch.randn(10, 4)
    whole, parts = Moments(), Moments()
    whole.add(x, y)
    for piece, other in zip(x.split(3), y.split(3), strict=True):
        parts.add(piece, other)
    for a, b in ((whole.finish().hessian, parts.finish().hessian), (whole.cross, parts.cross)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
