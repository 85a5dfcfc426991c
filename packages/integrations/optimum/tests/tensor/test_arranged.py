# SPDX-License-Identifier: Apache-2.0
"""Weights of 2 and 4 bits as kernels want them: by a kernel of this file, whose layout is the codes backwards."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimum.quanto import WeightQBitsTensor, freeze, qint4, qtypes, quantization_map, quantize, requantize
from quanto import reference
from quanto.kernels import KernelSpec, kernels
from quanto.kernels.layout import Layout, Tensors
from quanto.plugins.manager import plugins


def _turned(tensors: Tensors, qtype: str, block_size: tuple[int, ...], size: int) -> Tensors:
    return tensors[0].flip(0), *tensors[1:]


def _linear(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return reference.linear(x, codes.flip(0), *rest)


@pytest.fixture
def kernel() -> Iterator[None]:
    """A kernel with a layout of its own; the registry is as before afterwards."""
    plugins.load()  # or what is put back would lack the kernels of core
    saved = dict(kernels.specs), dict(kernels.layouts), dict(kernels.calls)
    zeros = frozenset({"float"})
    with kernels.transaction("test"):
        kernels.register_layout(Layout("test.turned", _turned, _turned))
        kernels.register(
            KernelSpec(
                "test.linear", "linear", "cpu", _linear, frozenset({"int4", "int2"}), zero_points=zeros,
                layout="test.turned", priority=1000,
            )
        )  # fmt: skip
    yield
    with kernels.transaction("quanto-core"):
        for now, before in zip((kernels.specs, kernels.layouts, kernels.calls), saved, strict=True):
            now.clear()
            now.update(before)


def build(weights: str = "qint4", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(192, 48, dtype=dtype), nn.ReLU(), nn.Linear(48, 5, dtype=dtype))
    quantize(model, weights=weights)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", ["qint4", "qint2"])
def test_the_same_numbers_and_bytes(kernel: None, weights: str, dtype: torch.dtype) -> None:
    model = build(weights, dtype)
    floats = [model[i].qweight for i in (0, 2)]
    freeze(model)
    for i, before in zip((0, 2), floats, strict=True):
        weight = model[i].weight
        assert weight.operand is not None
        assert weight.operand.key.endswith("test.turned")
        assert torch.equal(weight, before)
        assert torch.equal(weight.dequantize(), before.dequantize())
        assert torch.equal(weight._data._data, before._data._data)
    x = torch.randn(3, 192, dtype=dtype)
    w = [model[i].weight.dequantize().double() for i in (0, 2)]
    hidden = (x.double() @ w[0].T + model[0].bias.double()).relu()
    expected = hidden @ w[1].T + model[2].bias.double()
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(model(x).double(), expected, atol=bound, rtol=bound)


def test_saved_copied_moved(kernel: None) -> None:
    model, x = build(), torch.randn(3, 192)
    freeze(model)
    state, expected = model.state_dict(), model(x)
    assert {"0.weight._data._data", "0.weight._scale", "0.weight._shift"} <= set(state)
    again = build()
    requantize(again, state, quantization_map(model))
    copied = copy.deepcopy(model)
    loaded = build()
    loaded.load_state_dict(state)
    for other in (again, copied, loaded):
        assert other[0].weight.operand is not None
        assert torch.equal(other(x), expected)
    buffer = io.BytesIO()
    torch.save(model[0].weight, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False), model[0].weight)
    half = model.to(torch.bfloat16)[0].weight
    assert half.operand is not None
    assert half.operand.scale.dtype == torch.bfloat16
    assert torch.equal(half._data._data, state["0.weight._data._data"])


def test_copies_into_a_weight(kernel: None) -> None:
    first, second = build(), build()
    with torch.no_grad():
        second[0].weight.mul_(2)
    freeze(first)
    freeze(second)
    with torch.no_grad():
        first[0].weight.copy_(second[0].weight)
    assert torch.equal(first[0].weight, second[0].weight)


def test_gradients_and_compiling(kernel: None) -> None:
    model = build()
    freeze(model)
    x = torch.randn(3, 192, requires_grad=True)
    model(x).sum().backward()
    w = [model[i].weight.dequantize() for i in (0, 2)]
    y = torch.relu(x @ w[0].T + model[0].bias) @ w[1].T
    (expected,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_codes_that_a_kernel_would_lose(kernel: None) -> None:
    """A group whose scale is zero: its codes count for nothing, and must come back."""
    codes = torch.arange(8 * 32, dtype=torch.uint8).view(8, 32) % 16
    scale, shift = torch.ones(8, 1), torch.ones(8, 1)
    kept = WeightQBitsTensor(qint4, 0, None, (8, 32), (32, 1), codes, scale, shift).optimize()
    assert kept.operand is not None
    scale[3] = 0
    refused = WeightQBitsTensor(qtypes["qint4"], 0, None, (8, 32), (32, 1), codes, scale, shift)
    assert refused.optimize() is refused


def test_without_a_kernel_weights_stay_as_in_files() -> None:
    model = build("qint2")
    freeze(model)
    assert model[0].weight.operand is None
