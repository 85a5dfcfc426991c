# SPDX-License-Identifier: Apache-2.0
"""What operations do to a quantized tensor: refuse edits, stay exact, go to kernels, or compute on the values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import quanto
from quanto import QTensor

QTYPES = sorted(quanto.qtypes)
BYTES = [name for name in QTYPES if quanto.qtypes[name].bits == 8]
#: largest error of a product in units of the sum of its terms' magnitudes: a few roundings to the dtype
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _q(name: str, *shape: int, **options: Any) -> QTensor:
    return quanto.quantize_tensor(_randn(*(shape or (6, 64))), name, **options)


def _assert_product(got: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None) -> None:
    """`got` is `a @ b + bias`, where a and b are float64, within the tolerance of its dtype."""
    extra = torch.zeros(()) if bias is None else bias
    want = a @ b + extra.double()
    unit = a.abs() @ b.abs() + extra.double().abs()
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= TOLERANCE[got.dtype] * unit).all()


# -- edits -------------------------------------------------------------------------------------------------------------

SGD = {"weight_decay": 0.0, "momentum": 0.0, "lr": 1.0, "dampening": 0.0, "nesterov": False, "maximize": False}


def _step(q: QTensor) -> None:
    optimizer = torch.optim.SGD([q], 1.0)
    q.grad = torch.ones(6, 64)
    optimizer.step()


EDITS: dict[str, Callable[[QTensor], Any]] = {
    "add_": lambda q: q.add_(1),
    "mul_": lambda q: q.mul_(2),
    "div_": lambda q: q.div_(2),
    "zero_": lambda q: q.zero_(),
    "fill_": lambda q: q.fill_(1.0),
    "clamp_": lambda q: q.clamp_(-1, 1),
    "relu_": lambda q: q.relu_(),
    "normal_": lambda q: q.normal_(),
    "init": lambda q: nn.init.zeros_(q),
    "item": lambda q: q.__setitem__(0, 1.0),
    "half a byte": lambda q: q.__setitem__((0, 0), 1.0),
    "rows of the transposed": lambda q: q.T.__setitem__(slice(2), 1.0),
    "mask": lambda q: q.masked_fill_(torch.ones(6, 64, dtype=torch.bool), 0),
    "index": lambda q: q.index_put_((torch.tensor([0]),), torch.zeros(64)),
    "out": lambda q: torch.add(torch.ones(6, 64), 1, out=q),
    "data": lambda q: q.data.mul_(2),
    "data assigned": lambda q: setattr(q, "data", torch.ones(6, 64)),
    "shape": lambda q: q.t_(),
    "foreach": lambda q: torch._foreach_mul_([q], 2.0),
    "floats": lambda q: q.copy_(torch.ones(6, 64)),
    "fused": lambda q: torch._fused_sgd_([q], [torch.ones(6, 64)], [], **SGD, is_first_step=True),
    "optimizer": lambda q: _step(q),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", ["int8", "int4", "nvfp4"])
def test_edits_in_place_are_refused(name: str, edit: str) -> None:
    q = _q(name)
    before = q.dequantize()
    with pytest.raises(RuntimeError, match=r"in place, and the edit would be lost|takes a QTensor of the same format"):
        EDITS[edit](q)
    assert torch.equal(q.dequantize(), before)


def test_a_refused_edit_names_the_operation_and_the_qtype() -> None:
    with pytest.raises(RuntimeError, match=r"aten.mul_.Tensor would edit a quantized tensor \(int8\) in place"):
        _q("int8").mul_(2)


@pytest.mark.parametrize("name", QTYPES)
def test_copying_from_the_same_format(name: str) -> None:
    target, source = _q(name), quanto.quantize_tensor(_randn(6, 64, seed=1), name)
    assert target.copy_(source) is target
    assert torch.equal(target.dequantize(), source.dequantize())
    assert target.codes.data_ptr() != source.codes.data_ptr()


@pytest.mark.parametrize(
    "source",
    [
        _q("int4"),
        _q("int8", 6, 32),
        _q("int8", group_size=32),
        _q("int8", granularity="tensor"),
        _q("int8", symmetric=False),
        _q("int8", 64, 6).T,
        _randn(6, 64),
    ],
    ids=["qtype", "shape", "groups", "tensor", "zero points", "transposed", "floats"],
)
def test_copying_from_another_format_is_refused(source: Tensor) -> None:
    target = _q("int8")
    before = target.clone()
    with pytest.raises(RuntimeError, match=r"takes a QTensor of the same format, not .* quantize it first"):
        target.copy_(source)
    assert torch.equal(target, before)


def test_copying_into_another_format_is_refused() -> None:
    for target in (_q("int8", symmetric=False), _q("int8", 64, 6).T, _q("int4").view(-1)):
        with pytest.raises(RuntimeError, match="takes a QTensor of the same format"):
            target.copy_(_q("int8"))


def test_copying_into_floats_dequantizes() -> None:
    q = _q("int4")
    assert torch.equal(torch.empty(6, 64).copy_(q), q.dequantize())
    assert torch.equal(torch.empty(6, 64, dtype=torch.bfloat16).copy_(q), q.dequantize().bfloat16())


# -- exact arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in QTYPES if quanto.qtypes[n].block != 32])
@given(st.integers(-20, 20))
def test_powers_of_two_are_exact(name: str, exponent: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q = quanto.quantize_tensor(_randn(6, 64, dtype=dtype), name)
        for got, want in ((q * 2.0**exponent, exponent), (2.0**exponent * q, exponent), (q / 2.0**exponent, -exponent)):
            assert isinstance(got, QTensor)
            assert torch.equal(got.dequantize(), q.dequantize() * 2.0**want)


@pytest.mark.parametrize("name", [n for n in QTYPES if quanto.qtypes[n].block != 32])
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(st.floats(1e-4, 1e2))
def test_factors_are_rounded_once(name: str, dtype: torch.dtype, factor: float) -> None:
    # Three roundings (of the scale, of the product, of the value) of half an ulp each, one more where scales have two
    # levels, and a subnormal float16.
    roundings = 4 if quanto.qtypes[name].two_level else 3
    rtol, atol = roundings / 2 * torch.finfo(dtype).eps, 2.0**-25 if dtype == torch.float16 else 0.0
    q = quanto.quantize_tensor(_randn(6, 64, dtype=dtype), name)
    values = q.dequantize(torch.float64)
    for got, want in ((q * factor, values * factor), (q / factor, values / factor)):
        assert isinstance(got, QTensor)
        fits = want.abs() < torch.finfo(dtype).max
        torch.testing.assert_close(got.dequantize().double()[fits], want[fits], rtol=rtol, atol=atol)


FACTORS = (0, 0.0, -1.5, math.inf, math.nan, torch.tensor(2.0), torch.full((64,), 2.0), 1j)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_other_factors_dequantize(factor: Any, dequantized: list[str]) -> None:
    q = _q("int8")
    got = q * factor
    assert type(got) is Tensor
    assert dequantized
    torch.testing.assert_close(got, q.dequantize() * factor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_power_of_two_scales_take_no_factor(name: str) -> None:
    q = _q(name)
    assert type(q * 3.0) is Tensor
    assert torch.equal(q * 3.0, q.dequantize() * 3.0)


@pytest.mark.parametrize("name", BYTES)
def test_relu_is_exact(name: str, dequantized: list[str]) -> None:
    for options in ({}, {"block_size": ()}, {"block_size": (2, 32)}):
        q = _q(name, **options)
        got = q.relu()
        assert isinstance(got, QTensor)
        assert dequantized == []
        assert torch.equal(got.dequantize(), q.dequantize().relu())


@pytest.mark.parametrize("q", [_q("int4"), _q("nf4"), _q("nvfp4"), _q("int8", symmetric=False)], ids=repr)
def test_relu_of_other_codes_dequantizes(q: QTensor) -> None:
    assert type(q.relu()) is Tensor
    assert torch.equal(q.relu(), q.dequantize().relu())


def test_relu_keeps_nan() -> None:
    x = _randn(2, 4)
    x[0, 0] = torch.nan
    q = quanto.quantize_activation(x, "float8_e4m3fn", torch.tensor(0.1))
    torch.testing.assert_close(q.relu().dequantize(), q.dequantize().relu(), rtol=0, atol=0, equal_nan=True)


def test_equality_is_of_values() -> None:
    for name in QTYPES:
        q = _q(name)
        assert torch.equal(q, q.clone())
        assert not torch.equal(q, quanto.quantize_tensor(_randn(6, 64, seed=1), name))
        assert not torch.equal(q, q[:3])
        assert torch.equal(q, q.dequantize())
    zeros = torch.zeros(2, 4)
    assert torch.equal(quanto.quantize_tensor(zeros, "int8"), quanto.quantize_tensor(zeros, "int4"))
    x = torch.tensor([[127.5, 3.0]])
    assert torch.equal(quanto.quantize_tensor(x, "int8"), quanto.quantize_tensor(x, "int8", scale_dtype="e8m0"))


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QTYPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products_with_a_transposed_weight_run_kernels(
    name: str, dtype: torch.dtype, kernel_calls: list[str], dequantized: list[str]
) -> None:
    x, bias = _randn(5, 64, seed=1, dtype=dtype), _randn(6, seed=2, dtype=dtype)
    for options in ({"block_size": (1, 64)}, {"block_size": (1, 16)}, {"block_size": (2, 32)}):
        w = quanto.quantize_tensor(_randn(6, 64, dtype=dtype), name, **options)
        a, b = x.double(), w.dequantize(torch.float64).T
        _assert_product(x @ w.T, a, b)
        _assert_product(torch.mm(x, w.t()), a, b)
        _assert_product(torch.matmul(x.view(1, 5, 64), w.mT), a.view(1, 5, 64), b)
        _assert_product(torch.addmm(bias, x, w.T), a, b, bias)
        _assert_product(F.linear(x, w, bias), a, b, bias)
    assert kernel_calls == ["linear"] * 15
    assert dequantized == []


def test_products_with_groups_along_the_output_dequantize(dequantized: list[str], kernel_calls: list[str]) -> None:
    for name in ("int8", "int4"):
        w, x = _q(name, 64, 6), _randn(5, 64, seed=1)
        _assert_product(x @ w, x.double(), w.dequantize(torch.float64))
    assert dequantized == ["aten.mm.default"] * 2
    assert kernel_calls == []


def test_products_with_scales_per_tensor(kernel_calls: list[str]) -> None:
    w = _q("int8", 64, 6, granularity="tensor")  # no blocks: either orientation is a weight
    x = _randn(5, 64, seed=1)
    _assert_product(x @ w, x.double(), w.dequantize(torch.float64))
    assert kernel_calls == ["linear"]


@pytest.mark.parametrize("name", ["int8", "float8_e4m3fn"])
def test_products_of_two_quantized_tensors(name: str, kernel_calls: list[str]) -> None:
    x, w = quanto.quantize_activation(_randn(5, 64, seed=1), name), _q(name)
    _assert_product(x @ w.T, x.dequantize(torch.float64), w.dequantize(torch.float64).T)
    assert kernel_calls == ["scaled_linear"]


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weight first": lambda w, x: w @ x.T,
    "groups along the output": lambda w, x: x[:, :6] @ w,
    "vector": lambda w, x: w @ x[0],
    "batches": lambda w, x: torch.bmm(x.expand(2, 5, 64), w.mT.expand(2, 64, 6)),
    "scaled addmm": lambda w, x: torch.addmm(torch.ones(6), x, w.T, beta=0.5, alpha=2),
    "addmm of a matrix": lambda w, x: torch.addmm(torch.ones(5, 6), x, w.T),
    "einsum": lambda w, x: torch.einsum("tk,nk->tn", x, w),
    "grouped activations": lambda w, x: quanto.quantize_tensor(x, "int8", group_size=16) @ w.T,
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["int8", "int4", "mxfp4"])
def test_other_products_are_right_too(name: str, product: str) -> None:
    w, x = _q(name), _randn(5, 64, seed=1)
    got, want = PRODUCTS[product](w, x), PRODUCTS[product](w.dequantize(), x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


# -- everything else ---------------------------------------------------------------------------------------------------

REST: dict[str, Callable[[Tensor], Any]] = {
    "add": lambda x: x + 1,
    "subtract from": lambda x: 1 - x,
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(-1),
    "max": lambda x: x.max(0),
    "softmax": lambda x: x.softmax(-1),
    "abs": lambda x: x.abs(),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "power": lambda x: x**2,
    "norm": lambda x: torch.linalg.norm(x),
    "sort": lambda x: x.sort(),
    "silu": F.silu,
    "layer norm": lambda x: F.layer_norm(x, (64,)),
    "both": lambda x: x * x,
    "to integers": lambda x: x.to(torch.int32),
    "to small floats": lambda x: x.to(torch.float8_e5m2).float(),
    "isnan": lambda x: x.isnan(),
    "repeat": lambda x: x.repeat(2, 1),
    "tril": lambda x: x.tril(),
    "zeros like": torch.zeros_like,
    "pad": lambda x: F.pad(x, (1, 1)),
}


@pytest.mark.parametrize("operation", REST)
@pytest.mark.parametrize("name", ["int8", "int3", "nvfp4"])
def test_the_rest_computes_on_the_values(name: str, operation: str) -> None:
    q = _q(name)
    got, want = REST[operation](q), REST[operation](q.dequantize())
    for g, w in zip(got, want, strict=True) if isinstance(got, tuple) else ((got, want),):
        assert type(g) is Tensor
        assert torch.equal(g, w)


def test_dequantizing_is_reported(dequantized: list[str]) -> None:
    (_q("int8") + _q("int8")).exp()
    assert dequantized == ["aten.add.Tensor", "aten.add.Tensor"]


def test_results_follow_the_module_that_made_their_input() -> None:
    q = _q("int8")
    q.producer = object()
    for got in (q[1:], q.T, q * 2, q.relu(), q.split(2)[1], q.detach(), q.to(torch.float16)):
        assert got.producer is q.producer
