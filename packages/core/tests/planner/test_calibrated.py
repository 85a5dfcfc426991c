# SPDX-License-Identifier: Apache-2.0
"""Candidates by calibrated rounding: linear layers and convolutions lose less than by the scheme's algorithm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quanto
from quanto.planner.calibrated import calibrated_codes
from quanto.planner.layers import encode, find_layers


@torch.no_grad()
def test_less_error_than_the_schemes_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    depthwise = nn.Conv2d(12, 12, 3, groups=12)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), depthwise, nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 5))
    batches = [torch.rand(8, 3, 7, 7) for _ in range(3)]
    inputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, args[0].detach()))
    model(torch.cat(batches))
    layers, schemes = find_layers(model), [quanto.Scheme("int4", granularity="channel"), quanto.Scheme("nvfp4")]
    found = calibrated_codes(model, layers, schemes, batches)
    assert [layer.name for layer, _ in found] == ["0", "2", "5"]
    for layer, (integer, two_level) in found:
        errors = []
        for codes in (integer, encode(layer, schemes[0])):
            difference = layer.slot(schemes[0]).to_float(codes.dequantize()) - layer.weight
            moved = torch.func.functional_call(
                layer.module, {"weight": difference, "bias": torch.zeros(len(difference))}, inputs[layer.name]
            )
            errors.append(float(moved.square().mean()))
        assert errors[0] < 0.7 * errors[1], layer.name
        assert torch.equal(two_level.dequantize(), encode(layer, schemes[1]).dequantize())
    monkeypatch.setattr("quanto.planner.calibrated._BYTES", 1)  # a pass over the data for each layer
    again = calibrated_codes(model, layers, schemes, batches)
    for (_, whole), (_, part) in zip(found, again, strict=True):
        assert torch.equal(whole[0].dequantize(), part[0].dequantize())
