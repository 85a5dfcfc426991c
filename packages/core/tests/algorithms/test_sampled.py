# SPDX-License-Identifier: Apache-2.0
"""Samples of inputs: sizes of all tokens, rows of some, the largest among them."""

from __future__ import annotations

from typing import Any

import torch

import quanto
from quanto.algorithms import Block
from quanto.algorithms.sampled import sample_inputs
from quanto.algorithms.stream import Stream


def _block(tiny: Any, batches: list[torch.Tensor]) -> tuple[Block, torch.Tensor]:
    model = quanto.quantize(tiny(), "int8")
    with torch.no_grad():
        inputs = Stream([model.embed(b) for b in batches], [((), {})] * len(batches))
        x = torch.stack([model.blocks[0].norm(v).reshape(-1, 64) for v in inputs.values])
    return Block("blocks.0", model.blocks[0], inputs, inputs), x


def test_sizes_are_of_all_tokens(tiny: Any, batches: list[torch.Tensor]) -> None:
    block, x = _block(tiny, batches)
    found = sample_inputs(block, ["up", "down"], tokens=64)
    assert found.keys() == {"up", "down"}
    torch.testing.assert_close(found["up"].peaks, x.abs().amax(1))
    torch.testing.assert_close(found["up"].squares, x.square().mean((0, 1)), rtol=1e-4, atol=1e-6)
    assert len(found["up"].rows) == 64
    assert found["up"].rows.abs().amax() == x.abs().amax()
    scaled = found["up"].scaled(torch.full((64,), 2.0))
    torch.testing.assert_close(scaled.squares, 4 * found["up"].squares)
    torch.testing.assert_close(scaled.rows, 2 * found["up"].rows)


def test_more_batches_than_tokens(tiny: Any, batches: list[torch.Tensor]) -> None:
    block, x = _block(tiny, batches)
    found = sample_inputs(block, ["up"], tokens=6)["up"]
    assert 6 <= len(found.rows) <= 8
    assert len(found.peaks) == len(x)
