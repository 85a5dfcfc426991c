# SPDX-License-Identifier: Apache-2.0
"""Quantized activations: dynamic, then static; saved with the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import build, cls, inputs, run

from quanto.nn import QModule
from quanto_diffusers import QuantoConfig, calibrate


@pytest.mark.parametrize("name", ["flux", "unet"])
@pytest.mark.parametrize("activations", ["int8", "float8"])
def test_static_scales_are_saved(name: str, activations: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    config = QuantoConfig("int8", activations)
    model = cls(name).from_pretrained(saved(name), quantization_config=config)
    dynamic, exact = run(model, name), run(build(name), name)
    assert (dynamic - exact).norm() < 0.2 * exact.norm()
    calibrate(model, [inputs(name)], momentum=0)
    static = run(model, name)
    assert not torch.equal(static, dynamic)
    assert (static - exact).norm() < 0.2 * exact.norm()
    assert all(m.input_scale is not None for m in model.modules() if isinstance(m, QModule) and m.quantizes_input)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(cls(name).from_pretrained(tmp_path), name), static)


def test_what_cannot_be_calibrated_is_said(saved: Callable[[str], Path]) -> None:
    model = cls("flux").from_pretrained(saved("flux"), quantization_config=QuantoConfig("int8"))
    with pytest.raises(ValueError, match="no layer has activations"):
        calibrate(model, [])
    model = cls("flux").from_pretrained(saved("flux"), quantization_config=QuantoConfig("int8", "int8"))
    with pytest.raises(ValueError, match="no data"):
        calibrate(model, lambda: None)
