# SPDX-License-Identifier: Apache-2.0
"""The operators: their fakes agree with them, layers' calls have the gradient of a linear layer, and errors say why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import quanto
from quanto import ops, reference
from quanto.nonlinearity import NONLINEARITIES
from quanto.weight import Weight

OPERATORS = torch.ops.quanto_core
#: qtypes, blocks and zero points: every code width, table and float, one scale to many, two levels
FORMATS: dict[str, tuple[str, tuple[int, ...], bool | None]] = {
    "int8 channel": ("int8", (1, 40), True),
    "int8 tensor": ("int8", (), True),
    "int4 group affine": ("int4", (1, 16), False),
    "int3 block": ("int3", (4, 16), True),
    "int2 channel affine": ("int2", (1, 40), False),
    "float8 channel": ("float8_e4m3fn", (1, 40), None),
    "nf4 group": ("nf4", (1, 16), None),
    "mxfp4": ("mxfp4", (1, 32), None),
    "nvfp4": ("nvfp4", (1, 16), None),
}


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _qtensor(name: str, shape: tuple[int, ...] = (6, 40)) -> quanto.QTensor:
    qtype, blocks, symmetric = FORMATS[name]
    blocks = (1,) * (len(shape) - 2) + blocks if blocks else ()
    return quanto.quantize_tensor(_randn(*shape), qtype, block_size=blocks, symmetric=symmetric)


def _weight(name: str, shape: tuple[int, ...] = (6, 40)) -> Weight:
    return _qtensor(name, shape).weight()


def _activations(qtype: str, *shape: int) -> tuple[Tensor, Tensor]:
    return reference.dynamic_quantize(_randn(*shape, seed=1), qtype, torch.float32)


def _quantize(name: str) -> list[Any]:
    w = _weight(name)
    return [_randn(6, 40), *w[1:4], w.qtype, w.block_size]


def _linear(name: str, *shape: int, bias: bool = True) -> list[Any]:
    w = _weight(name)
    return [_randn(*(shape or (2, 3)), 40, seed=1), *w[:4], _randn(6) if bias else None, w.qtype, w.block_size]


def _scaled(name: str, out: bool, static: bool = False, *nonlinearity: str) -> list[Any]:
    w = _weight(name)
    codes, scale = _activations("int8", 2, 3, 40)
    scale = torch.tensor(0.02) if static else scale
    out_scale = torch.tensor(0.1) if out else None
    return [codes, scale, *w[:4], _randn(6), "int8", w.qtype, w.block_size, out_scale, torch.bfloat16, *nonlinearity]


def _grouped(name: str) -> list[Any]:
    w = _weight(name, (3, 6, 40))
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    return [_randn(7, 40, seed=1), *w[:4], _randn(3, 6), ends, w.qtype, w.block_size]


#: arguments of each operator, several sets of them, by format
ARGUMENTS: dict[str, Callable[[str], list[list[Any]]]] = {
    "quantize": lambda name: [_quantize(name)],
    "dequantize": lambda name: [[*_weight(name)[:7], dtype] for dtype in (torch.float32, torch.float16)],
    "pack": lambda name: [[_codes(name), _bits(name)]],
    "unpack": lambda name: [[_weight(name).codes, _bits(name), 40]],
    "dynamic_quantize": lambda name: [[_randn(2, 3, 40), _weight(name).qtype, torch.float32]],
    "linear": lambda name: [_linear(name), _linear(name, 0, bias=False), _linear(name, 5)],
    "linear_input_grad": lambda name: [[_randn(2, 3, 6), *_weight(name)[:7]]],
    "scaled_linear": lambda name: [_scaled(name, False), _scaled(name, True), _scaled(name, True, True, "gelu")],
    "grouped_linear": lambda name: [_grouped(name)],
    "embedding": lambda name: [[torch.tensor([[0, 5], [3, 3]]), *_weight(name)[:7], torch.bfloat16]],
}


def _bits(name: str) -> int:
    return quanto.qtypes[FORMATS[name][0]].bits


def _codes(name: str) -> Tensor:
    return torch.randint(0, 2 ** _bits(name), (4, 40), dtype=torch.int32).to(torch.uint8)


def test_every_operator_is_tried_here() -> None:
    assert set(ARGUMENTS) == set(ops.SCHEMAS) == set(ops.FAKES)


def _opcheck(operator: str, arguments: list[Any]) -> None:
    # torch 2.13's schema test multiplies every input by itself, which one-byte floats can't
    narrow = any(isinstance(a, Tensor) and a.is_floating_point() and a.itemsize == 1 for a in arguments)
    tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    tests = tests if narrow else ("test_schema", *tests)
    torch.library.opcheck(getattr(OPERATORS, operator).default, tuple(arguments), test_utils=tests)


@pytest.mark.parametrize("name", ["int8 channel", "int8 tensor", "int4 group affine", "float8 channel", "nvfp4"])
@pytest.mark.parametrize("operator", ops.SCHEMAS)
def test_opcheck(operator: str, name: str) -> None:
    sets = ARGUMENTS[operator](name)
    for arguments in sets if name == "int8 channel" else sets[:1]:  # each takes a third of a second
        _opcheck(operator, arguments)


def _strided(t: Tensor) -> Tensor:
    """The same values with the strides of a transposed tensor."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("operator", ops.SCHEMAS)
def test_results_are_contiguous_whatever_the_strides(operator: str, name: str) -> None:
    for arguments in ARGUMENTS[operator](name):
        strided = [_strided(a) if isinstance(a, Tensor) else a for a in arguments]
        operation = getattr(OPERATORS, operator)
        with FakeTensorMode() as mode:
            fake = operation(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in strided))
        got, want = operation(*strided), operation(*arguments)
        for g, w, f in zip(*(o if isinstance(o, tuple) else (o,) for o in (got, want, fake)), strict=True):
            assert g.is_contiguous()
            assert (f.shape, f.dtype, f.stride()) == (g.shape, g.dtype, g.stride())
            torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


def test_results_are_never_arguments() -> None:
    codes = torch.arange(8, dtype=torch.uint8).reshape(2, 4)
    assert OPERATORS.pack(codes, 8).data_ptr() != codes.data_ptr()
    assert OPERATORS.unpack(codes, 8, 4).data_ptr() != codes.data_ptr()


@pytest.mark.parametrize("operator", ops.SCHEMAS)
def test_autocast_has_no_hand_in_the_arithmetic(operator: str) -> None:
    for arguments in ARGUMENTS[operator]("int8 channel"):
        want = getattr(OPERATORS, operator)(*arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = getattr(OPERATORS, operator)(*arguments)
        for g, w in zip(got, want, strict=True) if isinstance(got, tuple) else ((got, want),):
            assert g.dtype == w.dtype
            assert torch.equal(g, w)


# -- what layers call --------------------------------------------------------------------------------------------------


def _assert_near(got: Tensor, want: Tensor, unit: Tensor) -> None:
    """Within 1e-6 of `unit`, the sum of the magnitudes of an element's terms."""
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= 1e-6 * unit).all()


@pytest.mark.parametrize("name", FORMATS)
def test_calls_give_the_product_of_the_values(name: str) -> None:
    q, x, bias = _qtensor(name), _randn(2, 3, 40, seed=1), _randn(6)
    w, values = q.weight(), q.dequantize(torch.float64)
    assert torch.equal(ops.dequantize(w, torch.float64), values)
    assert torch.equal(ops.embedding(torch.tensor([5, 0]), w, torch.float64), values[[5, 0]])
    unit = x.double().abs() @ values.abs().T + bias.double().abs()
    _assert_near(ops.linear(x, w, bias), x.double() @ values.T + bias.double(), unit)
    codes, scale = _activations("float8_e5m2", 2, 3, 40)
    rounded = codes.view(torch.float8_e5m2).double() * scale.double()
    for y in (
        ops.quantized_linear(x, w, bias, "float8_e5m2"),
        ops.scaled_linear(codes, scale, w, bias, "float8_e5m2", None, torch.float32),
    ):
        _assert_near(y, rounded @ values.T + bias.double(), rounded.abs() @ values.abs().T + bias.double().abs())
    experts = _qtensor(name, (3, 6, 40))
    y = ops.grouped_linear(x[0], experts.weight(), None, torch.tensor([1, 1, 3], dtype=torch.int32))
    e = experts.dequantize(torch.float64)[[0, 2, 2]]
    _assert_near(
        y, torch.einsum("tk,tnk->tn", x[0].double(), e), torch.einsum("tk,tnk->tn", x[0].double().abs(), e.abs())
    )


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    w = _weight(name)
    x, bias = _randn(2, 40, seed=1, dtype=torch.float64), _randn(6, dtype=torch.float64)
    x.requires_grad_()
    bias.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: ops.linear(x, w, b), (x, bias))
    assert torch.autograd.gradcheck(lambda x: ops.linear(x, w), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["int8 channel", "int4 group affine", "float8 channel", "mxfp4"])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.02)], ids=["dynamic", "static"])
def test_gradients_pass_straight_through_the_rounding_of_activations(
    name: str, scale: Tensor | None, dtype: torch.dtype
) -> None:
    q = _qtensor(name)
    x, grad = _randn(2, 3, 40, seed=1, dtype=dtype).requires_grad_(), _randn(2, 3, 6, seed=2, dtype=dtype)
    bias = _randn(6).requires_grad_()
    y = ops.quantized_linear(x, q.weight(), bias, "int8", scale)
    y.backward(grad)
    values = q.dequantize(torch.float64)
    tolerance = 1e-6 if dtype == torch.float32 else 2.0**-7
    assert (y.dtype, x.grad.dtype, bias.grad.dtype) == (dtype, dtype, torch.float32)
    error = (x.grad.double() - grad.double() @ values).abs()
    assert (error <= tolerance * (grad.double().abs() @ values.abs())).all()
    torch.testing.assert_close(bias.grad.double(), grad.double().sum((0, 1)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("scale", [None, torch.tensor(0.02)], ids=["dynamic", "static"])
def test_nonlinearities_join_the_product(nonlinearity: str, scale: Tensor | None) -> None:
    w, x, bias = _weight("int8 channel"), _randn(2, 3, 40, seed=1), _randn(6)
    after = NONLINEARITIES[nonlinearity]
    want = after(ops.quantized_linear(x, w, bias, "int8", scale))
    assert torch.equal(ops.quantized_linear(x, w, bias, "int8", scale, nonlinearity), want)
    trained = x.clone().requires_grad_()
    y = ops.quantized_linear(trained, w, bias, "int8", scale, nonlinearity)
    assert torch.equal(y, want)
    y.sum().backward()
    plain = x.clone().requires_grad_()
    after(ops.quantized_linear(plain, w, bias, "int8", scale)).sum().backward()
    assert torch.equal(trained.grad, plain.grad)


def test_an_unknown_nonlinearity_is_refused() -> None:
    arguments = _scaled("int8 channel", False)
    calls = (
        lambda: OPERATORS.scaled_linear(*arguments, "tanh"),
        lambda: OPERATORS.scaled_linear(*(a.to("meta") if isinstance(a, Tensor) else a for a in arguments), "tanh"),
        lambda: ops.quantized_linear(_randn(2, 40), _weight("int8 channel"), None, "int8", None, "tanh"),
    )
    for call in calls:
        with pytest.raises(ValueError, match="nonlinearity must be one of relu, gelu, gelu_tanh, silu or empty, got"):
            call()


def test_only_wanted_gradients_are_made() -> None:
    w, bias = _weight("int8 channel"), _randn(6).requires_grad_()
    x = _randn(2, 40)
    ops.linear(x, w, bias).sum().backward()
    assert bias.grad.tolist() == [2.0] * 6
    assert x.grad is None
    assert not ops.linear(x, w, bias.detach()).requires_grad
    with torch.no_grad():
        assert not ops.linear(x.requires_grad_(), w, bias).requires_grad
    ops.linear(x, w, bias.detach()).sum().backward()
    torch.testing.assert_close(x.grad, _qtensor("int8 channel").dequantize().sum(0).expand(2, 40))


@pytest.mark.parametrize("name", FORMATS)
def test_no_tokens(name: str) -> None:
    w, x = _weight(name), torch.ones(0, 40, requires_grad=True)
    for y in (ops.linear(x, w), ops.quantized_linear(x, w, None, "int8"), ops.linear(x, w, torch.ones(6))):
        assert y.shape == (0, 6)
        y.sum().backward()
        assert x.grad.shape == (0, 40)
    assert ops.embedding(torch.ones(0, 3, dtype=torch.long), w, torch.half).shape == (0, 3, 40)


@pytest.mark.parametrize("features", [39, 38, 32, 41, 80])
@pytest.mark.parametrize("name", ["int8 channel", "int4 group affine", "int2 channel affine", "nf4 group"])
def test_wrong_features_are_refused(name: str, features: int) -> None:
    x, w, experts = _randn(5, features), _weight(name), _weight(name, (3, 6, 40))
    codes, scale = _activations("int8", 5, features)
    offsets = torch.tensor([1, 1, 3], dtype=torch.int32)
    calls = {
        "linear": lambda: ops.linear(x, w),
        "linear, training": lambda: ops.linear(x.clone().requires_grad_(), w),
        "quantized": lambda: ops.quantized_linear(x, w, None, "int8"),
        "static": lambda: ops.quantized_linear(x, w, None, "int8", torch.tensor(0.1)),
        "scaled": lambda: ops.scaled_linear(codes, scale, w, None, "int8", None, torch.float32),
        "experts": lambda: ops.grouped_linear(x, experts, None, offsets),
    }
    for call in calls.values():
        with pytest.raises(RuntimeError, match=f"linear: x has {features} features, the weight takes 40"):
            call()


@pytest.mark.parametrize("operator", ["linear", "scaled_linear", "grouped_linear"])
def test_fakes_refuse_wrong_features(operator: str) -> None:
    for arguments in ARGUMENTS[operator]("int4 group affine"):
        meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
        meta[0] = meta[0].new_empty(*meta[0].shape[:-1], 64)
        with pytest.raises(RuntimeError, match=r"has 64 features, which int4 packs in 32 bytes; codes has 20"):
            getattr(OPERATORS, operator)(*meta)


@pytest.mark.parametrize("operator", ["linear", "scaled_linear", "grouped_linear"])
def test_operators_refuse_what_they_would_get_wrong(operator: str) -> None:
    for arguments in ARGUMENTS[operator]("int4 group affine"):
        call, at = getattr(OPERATORS, operator), 2 if operator == "scaled_linear" else 1

        def changed(index: int, value: Any, given: list[Any] = list(arguments)) -> list[Any]:  # noqa: B006
            return [*given[:index], value, *given[index + 1 :]]

        call(*arguments)
        with pytest.raises(RuntimeError, match=r"has 30 features, which int4 packs in 15 bytes; codes has 20"):
            call(*changed(0, arguments[0][..., :30]))
        with pytest.raises(ValueError, match=r"scale must have shape .*, 3\) for block_size"):
            call(*changed(at + 1, arguments[at + 1][..., :1]))
        out = arguments[at].shape[:-1]
        for wrong in ((*out[:-1], 5), (*out[:-1], 1), (1, *out)):
            with pytest.raises(ValueError, match=r"bias must have shape .*6,?\), got"):
                call(*changed(at + 4, torch.ones(wrong)))
        if operator != "scaled_linear":
            with pytest.raises(TypeError, match=r"x must be a floating tensor, got torch.int32"):
                call(*changed(0, arguments[0].int()))
