# SPDX-License-Identifier: Apache-2.0
"""Scales of activations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optimum.quanto import Calibration, quantize


def build() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8), nn.Sigmoid())
    quantize(model, weights="qint8", activations="qint8")
    return model


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_counts_for_inputs(momentum: float) -> None:
    model = build()
    with torch.no_grad(), Calibration(momentum=momentum):
        model(torch.ones(2, 32))
        model(torch.ones(2, 32) * 3)
    expected = (momentum * 1 + (1 - momentum) * 3) / 127
    assert model[0].input_scale.item() == pytest.approx(expected, rel=1e-5)


def test_streamline_keeps_what_the_next_module_takes() -> None:
    model = build()
    with torch.no_grad(), Calibration():
        model(torch.randn(4, 32))
    assert "output" in model[0]._quantize_hooks  # relu and the next linear keep it quantized
    assert "output" not in model[2]._quantize_hooks  # sigmoid needs floats


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity in the input of QLinear"), torch.no_grad(), Calibration():
        build()(torch.full((2, 32), torch.nan))
