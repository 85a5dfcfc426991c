# SPDX-License-Identifier: Apache-2.0
"""`QLinear` computes what `nn.Linear` does on the quantized values, gradients and autocast included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quanto

G = torch.Generator().manual_seed(0)


def _layer(weights: str = "int8", activations: str | None = None, bias: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    return quanto.quantize(nn.Linear(64, 24, bias=bias), weights, activations, **options)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activations", [None, "int8", "float8"])
def test_leading_dimensions(lead: tuple[int, ...], bias: bool, activations: str | None) -> None:
    layer = quanto.freeze(_layer(activations=activations, bias=bias))
    x = torch.randn(*lead, 64, generator=G)
    y = layer(x)
    want = F.linear(x, layer.weight.dequantize(), layer.bias)
    assert y.shape == (*lead, 24)
    if y.numel():
        # rounding the input moves an element by at most half a step: 1/255 of int8's range, 1/16 of a float8's value
        error = {None: 1e-5, "int8": 0.5 / 127.5, "float8": 0.0625}[activations]
        bound = error * x.abs().amax(-1, keepdim=True) * layer.weight.dequantize().abs().sum(1) + 1e-5
        assert ((y - want).abs() <= bound).all()


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_is_that_of_the_quantized_values(activations: str | None, dtype: torch.dtype) -> None:
    layer = quanto.freeze(_layer(activations=activations).to(dtype))
    x = torch.randn(5, 64, generator=G, dtype=dtype, requires_grad=True)
    upstream = torch.randn(5, 24, generator=G, dtype=dtype)
    layer(x).backward(upstream)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-10}[dtype]
    weight = layer.weight.dequantize()
    torch.testing.assert_close(x.grad, upstream @ weight, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0), atol=tolerance, rtol=tolerance)
    assert layer.weight_packed.grad is None


@pytest.mark.parametrize("activations", [None, "int8"])
def test_only_the_bias_may_need_a_gradient(activations: str | None) -> None:
    layer = quanto.freeze(_layer(activations=activations))
    layer(torch.randn(5, 64, generator=G)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((24,), 5.0))
    layer.bias.requires_grad_(False)
    assert not layer(torch.randn(5, 64, generator=G)).requires_grad


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("activations", [None, "int8"])
def test_autocast(frozen: bool, activations: str | None) -> None:
    layer = _layer(activations=activations)
    if frozen:
        quanto.freeze(layer)
    plain = nn.Linear(64, 24)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(5, 64, generator=G, dtype=dtype)
        if dtype == torch.float64:
            plain, layer = plain.double(), layer.double()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            assert y.dtype == plain(x).dtype
        with torch.no_grad():
            torch.testing.assert_close(y.double(), layer(x.to(layer.bias.dtype)).double(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_wrong_number_of_features_is_named(activations: str | None, needs_grad: bool) -> None:
    layer = quanto.freeze(_layer(activations=activations))
    with (
        torch.set_grad_enabled(needs_grad),
        pytest.raises(RuntimeError, match="x has 63 features, the weight takes 64"),
    ):
        layer(torch.randn(5, 63))
    handed = quanto.quantize_activation(torch.randn(5, 63), "int8", torch.tensor(0.1))
    with torch.no_grad(), pytest.raises(RuntimeError, match="63"):
        layer(handed)


def test_a_parametrized_bias_is_computed() -> None:
    class Twice(nn.Module):
        def forward(self, bias: torch.Tensor) -> torch.Tensor:
            return bias * 2

    layer = nn.Linear(64, 24)
    plain = layer.bias.detach().clone()
    nn.utils.parametrize.register_parametrization(layer, "bias", Twice())
    quanto.freeze(quanto.quantize(layer, "int8"))
    x = torch.randn(3, 64, generator=G)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight.dequantize(), 2 * plain), atol=1e-5, rtol=1e-5)


def test_trainable_layers_take_codes_too() -> None:
    layer = _layer(activations="int8")
    x = quanto.quantize_activation(torch.randn(5, 64, generator=G), "int8", torch.tensor(0.02))
    want = F.linear(x.dequantize(), layer.effective(), layer.bias)
    torch.testing.assert_close(layer(x), want, atol=1e-6, rtol=1e-6)


def test_one_token_and_many_agree() -> None:
    layer = quanto.freeze(_layer("int8").bfloat16())
    x = torch.randn(200, 64, generator=G, dtype=torch.bfloat16)
    rows = torch.cat([layer(row) for row in x.split(1)])
    torch.testing.assert_close(rows, layer(x), atol=2e-2, rtol=2e-2)


def test_the_input_may_be_named() -> None:
    x = torch.randn(5, 64, generator=G)
    for layer in (_layer(), quanto.freeze(_layer())):
        assert torch.equal(layer(input=x), layer(x))
