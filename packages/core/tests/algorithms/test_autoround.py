# SPDX-License-Identifier: Apache-2.0
"""Learned rounding: less error than what it starts from, within half a step of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import reference
from quanto.algorithms import AutoRound, Pipeline


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"zero_point": "int"}])
def test_less_error_than_least_squares(options: dict[str, Any], tiny: Any, batches: list[torch.Tensor]) -> None:
    model, rounded, found = tiny(), tiny(), tiny()
    for m in (rounded, found):
        quanto.quantize(m, "int3", group_size=32, include="blocks.*", algorithm="mse", **options)
    quanto.freeze(rounded)
    Pipeline(AutoRound(40)).run(found, batches)
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (found, rounded))
    assert error < 0.8 * least


def test_goes_on_from_codes_of_a_step_before(tiny: Any, batches: list[torch.Tensor]) -> None:
    model, start, found = tiny(), tiny(), tiny()
    for m in (start, found):
        quanto.quantize(m, "int2", group_size=32, include="blocks.*")
    Pipeline("gptq").run(start, batches)
    Pipeline("gptq", AutoRound(60, rate=2e-4)).run(found, batches)
    codes = [k for k in start.state_dict() if k.endswith("packed")]
    same = sum((start.state_dict()[k] == found.state_dict()[k]).float().mean() for k in codes) / len(codes)
    assert same > 0.9  # the rate allows little, and what GPTQ rounded is near to that
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (found, start))
    assert error < 1.05 * least


def test_moves_by_half_a_step_at_most(tiny: Any, batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quanto.algorithms.autoround._Rounding.reset", lambda self: None)  # so bold a rate ends badly
    model, found = tiny(), quanto.quantize(tiny(), "int8", group_size=32, include="blocks.*", algorithm="mse")
    Pipeline(AutoRound(20, rate=0.4)).run(found, batches)
    steps = []
    for name, layer in found.named_modules():
        if isinstance(layer, quanto.nn.QModule):
            moved = (layer.weight.dequantize() - model.get_submodule(name).weight).detach().unflatten(1, (-1, 32))
            inside = reference.decode(layer.operand().codes, quanto.qint8, torch.float32).unflatten(1, (-1, 32))
            steps.append((moved.abs() / layer.operand().scale[..., None])[inside.abs() < 127])
    assert 0.9 < torch.cat(steps).max() < 1.01  # half by rounding, half learned


def test_floats_are_left_to_their_scheme(tiny: Any, batches: list[torch.Tensor]) -> None:
    one, other = (quanto.quantize(tiny(), "nf4", group_size=32) for _ in range(2))
    quanto.freeze(one)
    Pipeline("autoround").run(other, batches)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="steps and samples must be at least 1, got 0 and 2"):
        AutoRound(0)


class _Routed(nn.Module):
    """A batch goes to one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = (self.one if x[0, 0] > 0 else self.other)(x)
        return y


def test_experts_that_the_chosen_batches_miss() -> None:
    torch.manual_seed(0)
    model = _Routed()
    mix = torch.randn(8, 32)
    batches = [torch.randn(64, 8) @ mix for _ in range(8)]
    assert {bool(b[0, 0] > 0) for b in batches} == {True, False}
    least, found = (quanto.quantized(model, "int3", group_size=32, algorithm="mse") for _ in range(2))
    quanto.freeze(least)
    Pipeline(AutoRound(30, samples=1)).run(found, batches)
    with torch.no_grad():
        errors = [sum(float((m(b) - model(b)).square().mean()) for b in batches) for m in (found, least)]
    assert errors[0] < 0.9 * errors[1]
