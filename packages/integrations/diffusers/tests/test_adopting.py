# SPDX-License-Identifier: Apache-2.0
"""Models that core has quantized are saved as those that were loaded with a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build, cls, run

import quanto
from quanto.nn import QModule


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("unet", {"weights": "int4", "rules": {"conv_in": "int8"}}),
        ("flux", {"weights": "int8", "activations": "int8"}),
    ],
)
@pytest.mark.parametrize("frozen", [True, False])
def test_it_is_loaded_as_it_was(tmp_path: Path, name: str, how: dict[str, Any], frozen: bool) -> None:
    model = quanto.quantize(build(name), **how)
    if frozen:
        quanto.freeze(model)
    expected = run(model, name)
    model.save_pretrained(tmp_path)
    again = cls(name).from_pretrained(tmp_path)
    schemes = [{n: m.scheme for n, m in each.named_modules() if isinstance(m, QModule)} for each in (model, again)]
    assert schemes[0] == schemes[1]
    assert {m.frozen for m in again.modules() if isinstance(m, QModule) and m._slots} == {frozen}
    assert torch.equal(run(again, name), expected)


def test_floating_models_are_left_alone(tmp_path: Path) -> None:
    model = build("unet")
    model.save_pretrained(tmp_path)
    assert getattr(model, "hf_quantizer", None) is None
    assert "quantization_config" not in cls("unet").load_config(tmp_path)
