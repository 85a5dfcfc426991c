# SPDX-License-Identifier: Apache-2.0
"""GPTQ: less error at the output than nearest rounding, for every qtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import GPTQ, Pipeline


def _correlated(tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width // 4, width, generator=generator)
    return torch.randn(tokens, width // 4, generator=generator) @ mix + 0.1 * torch.randn(
        tokens, width, generator=generator
    )


@pytest.mark.parametrize("qtype", sorted(quanto.qtypes))
def test_less_error_than_nearest(qtype: str) -> None:
    x = _correlated(256, 64)
    layer = nn.Sequential(nn.Linear(64, 32), nn.Identity()).eval()
    wanted = layer(x)
    nearest_, found = (quanto.quantized(layer, qtype, algorithm=a) for a in ("mse", None))
    quanto.freeze(nearest_)
    Pipeline(GPTQ(correct=0)).run(found, [x])
    assert found[0].frozen
    error, least = ((m(x) - wanted).square().mean() for m in (found, nearest_))
    assert error < 0.8 * least


@pytest.mark.parametrize("options", [{"act_order": False}, {"sequential": False}, {"correct": 0.0}, {"correct": 1.0}])
def test_options(options: dict[str, Any], tiny: Any, batches: list[torch.Tensor]) -> None:
    model, rounded, found = tiny(), tiny(), tiny()
    for m in (rounded, found):
        quanto.quantize(m, "int3", group_size=32, include="blocks.*")
    quanto.freeze(rounded)
    Pipeline(GPTQ(**options)).run(found, batches)
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (found, rounded))
    assert error < 0.7 * least


def test_symmetric_and_short_groups() -> None:
    x = _correlated(64, 40)
    for options in (
        {"symmetric": True, "group_size": 32},
        {"zero_point": "int", "group_size": 32},
        {"granularity": "tensor"},
        {"block": (3, 16)},
    ):
        layer = quanto.quantize(nn.Sequential(nn.Linear(40, 7), nn.Identity()), "int4", **options)
        expected = layer[0].weight.detach().clone()
        Pipeline("gptq").run(layer, [x])
        assert (layer[0].weight.dequantize() - expected).abs().max() < 0.3


def test_dead_inputs_and_idle_layers() -> None:
    x = _correlated(64, 32)
    x[:, 5] = 0
    model = nn.ModuleDict({"used": nn.Linear(32, 8), "idle": nn.Linear(32, 8)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    quanto.quantize(model, "int4")
    Pipeline("gptq").run(model, [x])
    assert model["used"].frozen
    assert model["idle"].frozen
    assert model(x).isfinite().all()


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="damping must be positive, got 0"):
        GPTQ(damping=0)
    with pytest.raises(ValueError, match=r"correct must be in \[0, 1\], got 2"):
        GPTQ(correct=2)
    model = quanto.quantize(nn.Linear(8, 4), "int4")
    with pytest.raises(ValueError, match="NaN or infinity"):
        Pipeline("gptq").run(model, [torch.full((4, 8), torch.nan)])
