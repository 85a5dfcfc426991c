# SPDX-License-Identifier: Apache-2.0
"""Least squares as an algorithm of schemes: floating zero points by default, frozen, saved and reloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import quanto


def _error(x: torch.Tensor, algorithm: str, **options: object) -> float:
    q = quanto.quantize_tensor(x, quanto.Scheme("int4", group_size=64, algorithm=algorithm, **options))  # type: ignore[arg-type]
    return float((q.dequantize() - x).square().mean())


def test_nearer_than_minmax() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    least = _error(x, "minmax")
    assert _error(x, "mse", zero_point="int") < 0.95 * least
    assert _error(x, "mse") < 0.9 * least


@pytest.mark.parametrize("zero_point", [None, "int", "float"])
def test_saved_and_reloaded(zero_point: str | None, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 32), nn.Linear(32, 8)).eval()
    quanto.freeze(quanto.quantize(model, "int4", algorithm="mse", zero_point=zero_point))
    zero = model[0].weight_zero_point
    assert zero.is_floating_point() == (zero_point != "int")
    quanto.save(model, tmp_path / "saved")
    again = quanto.load(tmp_path / "saved", nn.Sequential(nn.Linear(256, 32), nn.Linear(32, 8)))
    assert torch.equal(again[0].weight_zero_point, zero)
    assert again[0].scheme == model[0].scheme
    x = torch.randn(3, 256)
    assert torch.equal(again(x), model(x))


def test_whole_zero_points_where_activations_are_quantized() -> None:
    model = quanto.freeze(quanto.quantize(nn.Linear(128, 8), "int4", "int8", algorithm="mse"))
    assert model.weight_zero_point.dtype == torch.int8


def test_trains_straight_through() -> None:
    model = quanto.quantize(nn.Linear(64, 8), "int4", algorithm="mse")
    model(torch.randn(4, 64)).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.isfinite().all()
