# SPDX-License-Identifier: Apache-2.0
"""GPTQ: less error at the output than nearest rounding, for every qtype; columns against a plain definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import GPTQ, Pipeline
from quanto.algorithms.gptq import round_columns
from quanto.quantizers import Target, fit
from quanto.quantizers.grid import nearest


def _correlated(tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width // 4, width, generator=generator)
    return torch.randn(tokens, width // 4, generator=generator) @ mix + 0.1 * torch.randn(
        tokens, width, generator=generator
    )


def _plain(weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, q: quanto.QType) -> torch.Tensor:
    """Optimal brain quantization in fixed order: the inverse Hessian of what remains is computed anew per column."""
    weight, out = weight.double().clone(), torch.zeros_like(weight)
    hessian = hessian.double()
    for i in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[i:, i:])
        column = weight[:, i].clone()
        out[:, i] = nearest(column.float() / scale[:, 0], q)
        error = (column - out[:, i].double() * scale[:, 0].double()) / inverse[0, 0]
        weight[:, i:] -= error[:, None] * inverse[0]
    return out


def test_columns_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _correlated(200, 24)
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    hessian = x.T @ x / 200 + 0.01 * torch.eye(24)
    target = Target(quanto.qint4, (1, 24), torch.float32)
    parameters = fit(weight, target)
    expected = _plain(weight, hessian, parameters.scale, quanto.qint4)
    for columns in (5, 128):  # lazy batches must not show
        monkeypatch.setattr("quanto.algorithms.gptq._COLUMNS", columns)
        found, _ = round_columns(weight, hessian, target, parameters, act_order=False)
        assert (found != expected).sum() <= 1  # a value in the middle of two codes


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
