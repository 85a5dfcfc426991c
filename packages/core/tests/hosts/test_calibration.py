# SPDX-License-Identifier: Apache-2.0
"""Calibrating with batches of each form, and with a function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.hosts.calibration import calibrate


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        assert not self.training
        return self.second(self.first(self.norm(x)) * scale)


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    return quanto.freeze(quanto.quantize(Model(), "int8", "int8", include=["first", "second", "norm"], **options))


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", [{"x": X, "scale": 2.0}, (X, 2.0), [X, 2.0]])
def test_forms_of_a_batch(batch: Any) -> None:
    made = model()
    calibrate(made, [batch], momentum=0.0, progress=False)
    assert made.first.input_scale is not None
    with torch.no_grad():
        largest = (made.first(made.norm(X)) * 2).abs().max()
    torch.testing.assert_close(made.second.input_scale, largest / 127, rtol=0.02, atol=0)
    assert made.training
    assert made.second.output_scale is None  # only norms hand codes on
    assert made.second.quantizes_output


def test_a_lone_tensor_and_a_function_do_the_same() -> None:
    one, other = model(), model()
    calibrate(one, [X, X], momentum=0.5, progress=False)
    calibrate(other, lambda: (other(X), other(X)), momentum=0.5, progress=False)
    assert torch.equal(one.second.input_scale, other.second.input_scale)


def test_what_cannot_be_calibrated_is_said() -> None:
    with pytest.raises(ValueError, match="no layer has activations"):
        calibrate(model(dynamic=True), [X], momentum=0.0, progress=False)
    with pytest.raises(ValueError, match="no data"):
        calibrate(model(), [], momentum=0.0, progress=False)
