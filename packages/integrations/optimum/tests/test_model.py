# SPDX-License-Identifier: Apache-2.0
"""Models: quantized, frozen, saved, loaded."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from optimum.quanto import QLinear, QModuleMixin, freeze, quantization_map, quantize, requantize

QTYPES = ["qint2", "qint4", "qint8", "qfloat8", "qfloat8_e5m2"]


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(192, 160), nn.ReLU(), nn.Linear(160, 8))


@pytest.mark.parametrize("weights", QTYPES)
def test_saved_and_loaded(weights: str) -> None:
    model, x = build(), torch.randn(3, 192)
    quantize(model, weights=weights)
    before = model(x)
    freeze(model)
    expected = model(x)
    torch.testing.assert_close(expected, before, atol=2e-5, rtol=1e-4)
    loaded = load(save(model.state_dict()))
    with torch.device("meta"):
        again = nn.Sequential(nn.Linear(192, 160), nn.ReLU(), nn.Linear(160, 8))
    requantize(again, loaded, quantization_map(model))
    assert torch.equal(again(x), expected)
    copied = build()
    quantize(copied, weights=weights)
    copied.load_state_dict(loaded)
    assert torch.equal(copied(x), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).keys() == loaded.keys()
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_keys() -> None:
    model = build()
    quantize(model, weights="qint4", exclude="2")
    freeze(model)
    expected = {"0.weight._data._data", "0.weight._scale", "0.weight._shift", "0.bias", "0.input_scale"}
    assert set(model.state_dict()) == expected | {"0.output_scale", "2.weight", "2.bias"}
    state = model.state_dict()
    assert state["0.weight._data._data"].shape == (160, 96)  # 320 groups of 96, two rows in a byte
    assert state["0.weight._shift"].shape == (320, 1)
    assert quantization_map(model) == {"0": {"weights": "qint4", "activations": "none"}}


@pytest.mark.parametrize("part", ["_scale", "_shift", "_data._data"])
def test_missing_parts_are_named(part: str) -> None:
    model = build()
    quantize(model, weights="qint4")
    freeze(model)
    state = model.state_dict()
    del state[f"0.weight.{part}"]
    with pytest.raises(RuntimeError, match=f"0.weight.{part}"):
        model.load_state_dict(state)


def test_float_checkpoints_load_into_frozen_models() -> None:
    model, other, x = build(), build(), torch.randn(3, 192)
    with torch.no_grad():
        other[0].weight.mul_(2)
    quantize(model, weights="qint8")
    freeze(model)
    found = model.load_state_dict(other.state_dict(), strict=False)
    assert set(found.missing_keys) == {f"{i}.{n}_scale" for i in (0, 2) for n in ("input", "output")}
    assert model[0].frozen
    quantize(other, weights="qint8")
    freeze(other)
    assert torch.equal(model(x), other(x))


def test_one_module_under_two_names_stays_one() -> None:
    model = nn.ModuleDict({"a": nn.Linear(32, 32)})
    model["b"] = model["a"]
    quantize(model, weights="qint8")
    assert isinstance(model["a"], QLinear)
    assert model["a"] is model["b"]


def test_modes_and_roots_stay() -> None:
    model = build().eval()
    quantize(model, weights="qint8")
    assert not any(module.training for module in model.modules())
    root = nn.Linear(8, 8)
    quantize(root, weights="qint8")
    assert not isinstance(root, QModuleMixin)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"weights must be one of .*'qint3'"):
        quantize(build(), weights="qint3")
    with pytest.raises(ValueError, match="'gone', which Sequential does not have"):
        requantize(build(), {}, {"gone": {"weights": "qint8", "activations": "none"}})
