# SPDX-License-Identifier: Apache-2.0
"""Signal to noise against its definition, and against what theory says of uniform rounding."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.eval import decibel, sqnr


def test_decibel_of_known_noise() -> None:
    x = torch.ones(5000)
    assert decibel(x, x + 0.1) == pytest.approx(20, abs=1e-5)
    assert decibel(x, x) == math.inf
    assert decibel(torch.zeros(3), x[:3]) == -math.inf


def test_a_bit_more_is_six_decibel() -> None:
    """Uniform weights over a uniform grid: the textbook's 6.02 dB per bit."""
    weight = torch.rand(64, 4096, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}
    for qtype in ("int8", "int4"):
        float_model = nn.Sequential(nn.Linear(4096, 64, bias=False))
        float_model[0].weight.data.copy_(weight)
        model = quanto.freeze(quanto.quantized(float_model, qtype, group_size=128))
        found[qtype] = sqnr(model, float_model).layers[0].sqnr
    assert found["int8"] - found["int4"] == pytest.approx(4 * 6.02, abs=0.6)
    assert found["int8"] == pytest.approx(8 * 6.02, abs=0.6)


@pytest.mark.parametrize("frozen", [True, False])
def test_report_says_what_each_weight_became(frozen: bool) -> None:
    float_model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    model = quanto.quantized(float_model, "int4", group_size=32, rules={"2": "int8"})
    if frozen:
        quanto.freeze(model)
    report = sqnr(model, float_model)
    one, two = report.layers
    assert (one.name, one.shape, two.name) == ("0.weight", (32, 64), "2.weight")
    assert one.bits == pytest.approx(4 + (32 + 8) / 32)  # float32 scales and int8 zero points
    assert two.bits == pytest.approx(8 + 1)  # a scale per row of 32
    assert two.sqnr > one.sqnr + 15
    assert one.error == pytest.approx(10 ** (-one.sqnr / 20))
    assert "0.weight" in str(report)
    assert report.convention in str(report)
    assert len(json.loads(json.dumps(report.to_dict(), allow_nan=False))["layers"]) == 2


def test_a_lossless_weight_is_none_in_json() -> None:
    float_model = nn.Sequential(nn.Linear(16, 4))
    nn.init.zeros_(float_model[0].weight)
    report = sqnr(quanto.quantized(float_model, "int8"), float_model)
    assert report.layers[0].sqnr == math.inf
    assert report.to_dict()["layers"][0]["sqnr"] is None


def test_what_cannot_be_compared_is_named() -> None:
    float_model = nn.Sequential(nn.Linear(16, 4))
    with pytest.raises(ValueError, match="no quantized weight"):
        sqnr(float_model, float_model)
    model = quanto.quantized(float_model, "int8")
    with pytest.raises(ValueError, match=r"no parameter '0.weight'"):
        sqnr(model, nn.Sequential())
    with pytest.raises(ValueError, match=r"shape \(4, 16\), in the reference \(4, 8\)"):
        sqnr(model, nn.Sequential(nn.Linear(8, 4)))


def test_picture(tmp_path: Path) -> None:
    float_model = nn.Sequential(nn.Linear(16, 4))
    report = sqnr(quanto.quantized(float_model, "int8"), float_model)
    if find_spec("matplotlib") is None:
        with pytest.raises(ValueError, match="matplotlib"):
            report.draw(tmp_path / "a.png")
        return
    report.draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="suffix"):
        report.draw(tmp_path / "a.doc")
