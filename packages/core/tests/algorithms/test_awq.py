# SPDX-License-Identifier: Apache-2.0
"""AWQ: less error where inputs are uneven, alone and before GPTQ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import AWQ, Pipeline


def _uneven(make: Any) -> nn.Module:
    """Some channels of the norms are large."""
    model: nn.Module = make()
    with torch.no_grad():
        for block in model.blocks:  # type: ignore[union-attr]
            block.norm.weight[::16] = 20
    return model


@pytest.mark.parametrize("steps", [("awq",), ("awq", "gptq")])
def test_less_error(steps: tuple[str, ...], tiny: Any, batches: list[torch.Tensor]) -> None:
    model, rounded, found = (_uneven(tiny) for _ in range(3))
    for m in (rounded, found):
        quanto.quantize(m, "int4", group_size=32, include="blocks.*")
    quanto.freeze(rounded)
    Pipeline(*steps).run(found, batches)
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (found, rounded))
    assert error < 0.4 * least


def test_takes_the_power_of_least_error(tiny: Any, batches: list[torch.Tensor]) -> None:
    model, found = _uneven(tiny), quanto.quantize(_uneven(tiny), "int4", group_size=32, include="blocks.*")
    Pipeline("awq").run(found, batches)
    block = model.blocks[0]
    with torch.no_grad():
        x = torch.cat([block.norm(model.embed(b)).flatten(0, 1) for b in batches])
        size = x.square().mean(0).sqrt()
        errors = {}
        for power in range(11):
            scale = size ** (power / 10)
            scale = scale / (scale.max() * scale.min()).sqrt()
            loss = 0.0
            for layer in (block.gate, block.up):
                plain = quanto.quantize_tensor(
                    layer.weight * scale, quanto.Scheme("int4", group_size=32, algorithm="minmax")
                ).dequantize()
                loss += float((x @ (plain / scale - layer.weight).T).square().sum())
            errors[power] = loss, scale
        power = min(errors, key=lambda p: errors[p][0])
        assert 0 < power < 10
        wanted = block.norm.weight / errors[power][1]
        torch.testing.assert_close(found.blocks[0].norm.weight, wanted, rtol=1e-4, atol=1e-6)


def test_names_what_it_left_alone() -> None:
    from quanto.algorithms import Block, Step

    class Read(Step):
        skipped: tuple[str, ...] = ()

        def apply(self, block: Block) -> None:
            Read.skipped = tuple(block.skipped)

    model = quanto.quantize(nn.Sequential(nn.Linear(16, 16), nn.Tanh()), "int4")
    Pipeline("awq", Read()).run(model, [torch.randn(4, 16)])
    assert Read.skipped[0].endswith("nothing before can take the inverse of the scales")


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        AWQ(0)
