# SPDX-License-Identifier: Apache-2.0
"""Norms compute in float and may hand over codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import QTensor

G = torch.Generator().manual_seed(0)
BUILD = {
    "layer": lambda: nn.LayerNorm(32),
    "layer without weights": lambda: nn.LayerNorm((4, 32), elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(32),
}


def _pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    torch.manual_seed(0)
    norm = BUILD[name]().to(dtype)
    for p in norm.parameters():
        nn.init.uniform_(p)
    model = quanto.quantized(nn.Sequential(norm), "int8", "int8")
    return norm, model[0]  # type: ignore[index]


@pytest.mark.parametrize("name", BUILD)
def test_the_input_has_the_name_it_had(name: str) -> None:
    norm, quantized = _pair(name)
    x = torch.randn(3, 4, 32, generator=G)
    keyword = {"x" if name == "rms" else "input": x}
    assert torch.equal(quantized(**keyword), norm(**keyword))


@pytest.mark.parametrize("name", BUILD)
def test_computes_as_before(name: str) -> None:
    norm, quantized = _pair(name)
    assert type(quantized) in (quanto.nn.QLayerNorm, quanto.nn.QRMSNorm)
    x = torch.randn(3, 4, 32, generator=G)
    assert torch.equal(quantized(x), norm(x))
    q = quanto.quantize_activation(x, "int8", torch.tensor(0.03))
    assert torch.equal(quantized(q), norm(q.dequantize()))
    assert {n: tuple(p.shape) for n, p in quantized.named_parameters()} == {
        n: tuple(p.shape) for n, p in norm.named_parameters()
    }
    assert type(quanto.dequantize(quantized)) is type(norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BUILD)
def test_hands_over_codes(name: str, dtype: torch.dtype) -> None:
    norm, quantized = _pair(name, dtype)
    x = torch.randn(3, 4, 32, generator=G).to(dtype)
    with torch.no_grad():
        expected = norm(x)
        quantized.output_scale = expected.abs().amax().float() / 127.5
        handed = quantized(x)
    assert isinstance(handed, QTensor)
    assert (handed.dtype, handed.shape, handed.producer) == (dtype, x.shape, quantized)
    assert torch.equal(handed.codes, quanto.quantize_activation(expected, "int8", quantized.output_scale).codes)


def test_norms_need_quantized_activations() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 8))
    assert type(quanto.quantized(model, "int8")[0]) is nn.LayerNorm  # type: ignore[index]
    assert type(quanto.quantized(model, "int8", "int8", dynamic=True)[0]) is nn.LayerNorm  # type: ignore[index]
    made = quanto.quantized(model, "int8", "int8")
    assert isinstance(made[1], quanto.nn.QRMSNorm)  # type: ignore[index]
    assert "its output is not quantized" in str(quanto.explain(made))
    assert made[1].frozen, "it has no weights to freeze"  # type: ignore[index]
    with torch.no_grad():
        made[0].weight.add_(1)  # type: ignore[index]
    assert made[0].weight.requires_grad, "its own weights stay trainable"  # type: ignore[index]
