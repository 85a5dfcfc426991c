# SPDX-License-Identifier: Apache-2.0
"""Learned scales: LSQ's gradients, training, and what freezing, saving and undoing make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quanto

SCHEMES: list[dict[str, Any]] = [
    {"weights": "int4", "group_size": 16},
    {"weights": "int2", "group_size": 16, "algorithm": "mse"},
    {"weights": "int3", "symmetric": True},
    {"weights": "int8", "granularity": "tensor"},
]


def _layer(**options: Any) -> Any:
    torch.manual_seed(0)
    return quanto.quantize(nn.Linear(40, 6), learned=True, **options)


def test_gradients_are_those_of_the_paper() -> None:
    layer = _layer(weights="int2", symmetric=True, granularity="channel", scale_dtype="float32")
    upstream = torch.randn(6, 40)
    with torch.no_grad():
        layer.weight_scale.mul_(0.9)  # some are clipped, and none lies on a bound
    scale = layer.weight_scale.detach()
    (layer.effective() * upstream).sum().backward()
    steps = layer.weight.detach() / scale
    inside = (steps > -2) & (steps < 1)
    slope = torch.where(inside, steps.round() - steps, steps.clamp(-2, 1))
    expected = (slope * upstream).sum(1, keepdim=True) / (40 * 1) ** 0.5
    torch.testing.assert_close(layer.weight_scale.grad, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad, upstream * inside, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", SCHEMES)
def test_starts_as_rounding_does_and_freezes_what_it_learned(options: dict[str, Any], tmp_path: Path) -> None:
    layer, x = _layer(**options), torch.randn(5, 40)
    plain = quanto.freeze(quanto.quantize(nn.Linear(40, 6).requires_grad_(False), **options))
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")}, strict=False)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        layer.weight_scale.mul_(1.3)
    y = layer(x)
    quanto.save(layer, tmp_path / "training")
    again = quanto.load(tmp_path / "training", nn.Linear(40, 6))
    assert {n for n, p in again.named_parameters() if p.requires_grad} >= {"weight", "weight_scale"}
    torch.testing.assert_close(again(x), y)
    quanto.freeze(layer)
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)
    assert not layer.weight_scale.requires_grad
    quanto.save(layer, tmp_path / "frozen")
    assert torch.equal(quanto.load(tmp_path / "frozen", nn.Linear(40, 6))(x), layer(x))
    assert set(quanto.dequantize(layer).state_dict()) == {"weight", "bias"}
    assert set(quanto.dequantize(again).state_dict()) == {"weight", "bias"}


def test_training_ends_nearer_than_with_scales_from_the_weights() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    held, errors = torch.randn(512, 16), []
    for learned in (None, True):
        torch.manual_seed(1)
        student = quanto.quantized(teacher, "int2", group_size=16, learned=learned)
        optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
        for _ in range(150):
            x = torch.randn(64, 16)
            optimizer.zero_grad()
            F.mse_loss(student(x), teacher(x).detach()).backward()
            optimizer.step()
        quanto.freeze(student)
        with torch.no_grad():
            errors.append(float(F.mse_loss(student(held), teacher(held))))
    assert errors[1] < errors[0]


def test_another_scheme_takes_them_away() -> None:
    layer = _layer(weights="int4")
    assert "weight_scale" in dict(layer.named_parameters())
    quanto.quantize(layer, "int4")
    assert set(dict(layer.named_parameters())) == {"weight", "bias"}


def test_compiles() -> None:
    layer, x = _layer(weights="int4", group_size=16), torch.randn(5, 40)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.weight_scale.grad.abs().sum() > 0


def test_refuses_floats() -> None:
    with pytest.raises(ValueError, match="learned=True needs an integer qtype, not nf4"):
        quanto.Scheme("nf4", learned=True)
