# SPDX-License-Identifier: Apache-2.0
"""`F.linear` and `F.embedding` of quantized tensors: which kernel runs, what it gives, and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import quanto
from quanto import QTensor
from quanto.tensor.functions import is_activation

QTYPES = sorted(quanto.qtypes)
BLOCKS = {"tensor": (), "channel": (1, 70), "group": (1, 32), "odd": (1, 7), "block": (4, 32), "column": (10, 1)}


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _assert_linear(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`got` is the float64 product, within 1e-6 of the sum of its terms' magnitudes (a few roundings to float32)."""
    extra = torch.zeros(()) if bias is None else bias
    x, weight, extra = x.double(), weight.double(), extra.double()
    want = x @ weight.T + extra
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert ((got - want).abs() <= 1e-6 * (x.abs() @ weight.abs().T + extra.abs())).all()


@pytest.mark.parametrize("granularity", BLOCKS)
@pytest.mark.parametrize("name", QTYPES)
def test_linear_of_float_activations(
    name: str, granularity: str, kernel_calls: list[str], dequantized: list[str]
) -> None:
    bias = _randn(10, seed=2)
    for symmetric in (True, False) if quanto.qtypes[name].is_integer else (None,):
        w = quanto.quantize_tensor(_randn(10, 70), name, block_size=BLOCKS[granularity], symmetric=symmetric)
        for shape in ((70,), (0, 70), (1, 70), (5, 70), (2, 3, 70)):
            x = _randn(*shape, seed=1)
            _assert_linear(F.linear(x, w, bias), x, w.dequantize(torch.float64), bias)
            _assert_linear(F.linear(x, w), x, w.dequantize(torch.float64))
    assert set(kernel_calls) == {"linear"}
    assert dequantized == []


@pytest.mark.parametrize("weights", ["int8", "int4", "float8_e4m3fn", "nf4"])
@pytest.mark.parametrize("activations", ["int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("static", [True, False])
def test_linear_of_quantized_activations(
    weights: str, activations: str, static: bool, kernel_calls: list[str], dequantized: list[str]
) -> None:
    scale = torch.tensor(0.03) if static else None
    for blocks in ((1, 70), (1, 32), ()):
        w = quanto.quantize_tensor(_randn(10, 70), weights, block_size=blocks)
        for shape in ((70,), (0, 70), (1, 70), (2, 3, 70)):
            x = quanto.quantize_activation(_randn(*shape, seed=1), activations, scale)
            _assert_linear(F.linear(x, w), x.dequantize(torch.float64), w.dequantize(torch.float64))
    assert set(kernel_calls) == {"scaled_linear"}
    assert dequantized == []


def test_which_tensors_are_activations() -> None:
    x = _randn(3, 5, 64)
    assert is_activation(quanto.quantize_activation(x, "int8"))
    assert is_activation(quanto.quantize_activation(x, "float8", torch.tensor(0.1)))
    assert is_activation(quanto.quantize_activation(x, "int8")[:2].view(10, 64))
    for q in (
        quanto.quantize_tensor(x, "int8", group_size=32),
        quanto.quantize_tensor(x, "int8", block_size=(1, 5, 64)),
        quanto.quantize_tensor(x, "int8", symmetric=False),
        quanto.quantize_tensor(x, "int4"),
        quanto.quantize_tensor(x, "nvfp4"),
        quanto.quantize_tensor(x, "int4").mT,
    ):
        assert not is_activation(q)


def test_what_is_no_activation_or_no_weight_dequantizes(dequantized: list[str]) -> None:
    w = quanto.quantize_tensor(_randn(10, 64), "int4")
    x = quanto.quantize_tensor(_randn(3, 64, seed=1), "int8", group_size=32)
    bias = quanto.quantize_tensor(_randn(10, seed=2), "int8")
    _assert_linear(F.linear(x, w, bias), x.dequantize(), w.dequantize(torch.float64), bias.dequantize())
    _assert_linear(F.linear(x, torch.ones(10, 64)), x.dequantize(), torch.ones(10, 64))
    assert dequantized
    turned = quanto.quantize_tensor(_randn(64, 10), "int4", granularity="channel").T
    _assert_linear(F.linear(x.dequantize(), turned), x.dequantize(), turned.dequantize())


@pytest.mark.parametrize("name", ["int8", "int4", "mxfp4"])
def test_linear_refuses_other_features(name: str) -> None:
    w = quanto.quantize_tensor(_randn(10, 96), name)
    message = "linear: x has 64 features, the weight takes 96"
    for x in (_randn(5, 64), quanto.quantize_activation(_randn(5, 64), "int8"), _randn(0, 64)):
        with pytest.raises(RuntimeError, match=message):
            F.linear(x, w)
        with pytest.raises(RuntimeError, match=message):
            x @ w.T


def test_gradients_pass_through_the_weight() -> None:
    w = quanto.quantize_tensor(_randn(10, 70), "int4", group_size=32)
    grad = _randn(2, 3, 10, seed=3)
    for function in (F.linear, lambda x, w, b: x @ w.T + b):
        x, bias = _randn(2, 3, 70, seed=1).requires_grad_(), _randn(10).requires_grad_()
        function(x, w, bias).backward(grad)
        values = w.dequantize(torch.float64)
        _assert_linear(x.grad, grad, values.T)
        torch.testing.assert_close(bias.grad, grad.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_a_gradient_of_the_weight_is_that_of_its_values() -> None:
    w = nn.Parameter(quanto.quantize_tensor(_randn(10, 64), "int8"))
    x, grad = _randn(3, 64, seed=1), _randn(3, 10, seed=2)
    F.linear(x, w).backward(grad)
    torch.testing.assert_close(w.grad, grad.T @ x, rtol=1e-5, atol=1e-5)
    w.grad = None
    F.embedding(torch.tensor([1, 1]), w).sum().backward()
    assert w.grad.sum(1).tolist() == [0, 128, *[0] * 8]


def test_nan_stays_in_its_row() -> None:
    w = quanto.quantize_tensor(_randn(10, 64), "int4")
    x = _randn(3, 64, seed=1)
    x[1, 5] = torch.nan
    for given in (x, quanto.quantize_activation(x, "int8"), quanto.quantize_activation(x, "float8_e4m3fn")):
        y = F.linear(given, w)
        assert y[1].isnan().all()
        assert not y[[0, 2]].isnan().any()


def test_autocast_decides_the_dtype() -> None:
    w, x = quanto.quantize_tensor(_randn(10, 64), "int8"), _randn(3, 64, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given, dtype in ((x, torch.bfloat16), (x.double(), torch.float64)):
            for y in (F.linear(given, w), given @ w.T if dtype != torch.float64 else F.linear(given, w)):
                assert y.dtype == dtype
                torch.testing.assert_close(y.double(), x.double() @ w.dequantize().double().T, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("granularity", BLOCKS)
@pytest.mark.parametrize("name", QTYPES)
def test_embedding(name: str, granularity: str, kernel_calls: list[str], dequantized: list[str]) -> None:
    table = quanto.quantize_tensor(_randn(10, 70).half(), name, block_size=BLOCKS[granularity])
    for indices in (torch.tensor(3), torch.tensor([[0, 9], [4, 4]]), torch.tensor([], dtype=torch.long)):
        rows = F.embedding(indices, table, padding_idx=0)
        assert rows.dtype == torch.float16
        assert torch.equal(rows, table.dequantize()[indices])
    assert kernel_calls == ["embedding"] * 3
    assert dequantized == []


@pytest.mark.parametrize("index", [-1, 10, 99])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_embedding_refuses_indices_beyond_the_table(name: str, index: int) -> None:
    with pytest.raises(IndexError):
        F.embedding(torch.tensor([index]), quanto.quantize_tensor(_randn(10, 64), name))


def test_embedding_as_torch_calls_it(kernel_calls: list[str]) -> None:
    layer = nn.Embedding(10, 64, padding_idx=2)
    layer.weight = nn.Parameter(quanto.quantize_tensor(layer.weight, "int4"), requires_grad=False)
    indices = torch.tensor([2, 5])
    assert torch.equal(layer(indices), layer.weight.dequantize()[indices])
    assert kernel_calls == ["embedding"]
    with pytest.raises(RuntimeError, match=r"embedding_renorm_.* would edit a quantized tensor"):
        F.embedding(indices, layer.weight, max_norm=1.0)


def test_torchs_own_linear_layer_runs_the_kernel(kernel_calls: list[str]) -> None:
    layer = nn.Linear(64, 10)
    layer.weight = nn.Parameter(quanto.quantize_tensor(layer.weight, "int4"), requires_grad=False)
    x = _randn(3, 64)
    _assert_linear(layer(x), x, layer.weight.dequantize(torch.float64), layer.bias)
    assert kernel_calls == ["linear"]


def test_items_of_floats_take_quantized_values() -> None:
    q: Any = quanto.quantize_tensor(_randn(2, 8), "int4")
    x = torch.zeros(3, 8)
    x[1:] = q
    assert torch.equal(x[1:], q.dequantize())
    assert isinstance(q, QTensor)
