# SPDX-License-Identifier: Apache-2.0
"""Codes handed from layer to layer are those that quantizing again would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import QTensor
from quanto.nn.handover import finish, static_scale

G = torch.Generator().manual_seed(0)


def _layer(**options: Any) -> Any:
    return quanto.freeze(quanto.quantize(nn.Linear(32, 16), "int8", **options))


def test_static_scales_must_have_been_measured() -> None:
    layer = _layer(activations="int8", dynamic=False)
    with pytest.raises(RuntimeError, match=r"QLinear has static int8 activations but no input_scale: run `with quanto"):
        static_scale(layer)
    layer.input_scale = torch.tensor(0.5)
    assert static_scale(layer) is layer.input_scale
    assert static_scale(_layer(activations="int8")) is None
    norm = quanto.quantize(nn.Sequential(nn.LayerNorm(8)), "int8", "int8", dynamic=False)[0]  # type: ignore[index]
    assert static_scale(norm) is None, "a norm quantizes no input"


@pytest.mark.parametrize("qtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounded_values_and_codes_are_the_same(qtype: str, dtype: torch.dtype) -> None:
    layer = _layer(activations=qtype)
    y = torch.randn(5, 16, generator=G).to(dtype)
    assert finish(layer, y) is y, "without an output scale nothing happens"
    layer.output_scale = y.abs().amax().float() / quanto.qtypes[qtype].amax
    with torch.no_grad():
        handed = finish(layer, y)
    assert isinstance(handed, QTensor)
    assert (handed.qtype.name, handed.dtype, handed.producer) == (qtype, dtype, layer)
    # where a gradient is needed, or a graph is traced, the next layer gets rounded values and quantizes them again
    rounded = finish(layer, y.clone().requires_grad_())
    assert not isinstance(rounded, QTensor)
    assert torch.equal(rounded, handed.dequantize())
    again = quanto.quantize_activation(rounded.detach(), qtype, layer.output_scale)
    assert torch.equal(again.codes, handed.codes)


def test_weight_only_layers_hand_over_nothing() -> None:
    layer = _layer()
    layer.output_scale = torch.tensor(0.1)
    y = torch.randn(5, 16, generator=G)
    assert finish(layer, y) is y


def test_a_layer_takes_codes_of_its_own_kind_without_dequantizing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer(activations="int8")
    layer.input_scale = torch.tensor(0.02)
    x = torch.randn(5, 32, generator=G)
    codes = quanto.quantize_activation(x, "int8", layer.input_scale)
    dequantized: list[str] = []
    monkeypatch.setattr(QTensor, "on_dequantize", lambda q, operation: dequantized.append(operation))
    with torch.no_grad():
        handed, plain = layer(codes), layer(x)
    assert torch.equal(handed, plain)
    assert dequantized == []
    # codes of another qtype are values like any other; codes with a scale per token keep their own scales
    other = quanto.quantize_activation(x, "float8", torch.tensor(0.01))
    with torch.no_grad():
        assert torch.equal(layer(other), layer(other.dequantize()))
        own = layer(quanto.quantize_activation(x, "int8"))
        layer.input_scale = None
        assert torch.equal(own, layer(x))


def test_output_scales_give_codes_in_one_step() -> None:
    layer = _layer(activations="int8")
    layer.input_scale = torch.tensor(0.02)
    codes = quanto.quantize_activation(torch.randn(5, 32, generator=G), "int8", layer.input_scale)
    with torch.no_grad():
        plain = layer(codes)
        layer.output_scale = plain.abs().amax() / 127.5
        handed = layer(codes)
    assert isinstance(handed, QTensor)
    assert handed.producer is layer
    want = quanto.quantize_activation(plain, "int8", layer.output_scale)
    assert (handed.codes.int() - want.codes.int()).abs().max() <= 1
    assert torch.equal(handed.scale, layer.output_scale)
