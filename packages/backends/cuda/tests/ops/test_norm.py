# SPDX-License-Identifier: Apache-2.0
"""Norms and activations of few tokens against float64: views, ragged sizes, NaN, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quanto.kernels import kernels
from quanto_backend_cuda.ops.norm import activate_and_multiply, add_rms_norm, define_norms, rms_norm
from quanto_backend_cuda.runtime import interpreted

HALVES = [torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 64), (3, 100), (16, 1), (2, 1, 4096), (1, 1)]


def random(shape: tuple[int, ...], dtype: torch.dtype, device: str, view: bool = False) -> torch.Tensor:
    if not view:
        return torch.randn(shape, device=device).to(dtype)
    wide = torch.randn(*shape[:-1], 3 * shape[-1], device=device).to(dtype)  # as a part of a joined product
    return wide[..., shape[-1] : 2 * shape[-1]]


def near(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Two roundings to the dtype; the interpreter rounds bfloat16 towards zero."""
    steps = 3 if interpreted() else 1.5
    return bool(torch.isclose(got.double(), want, rtol=steps * torch.finfo(got.dtype).eps, atol=1e-6).all())


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * (weight + 1 if plus_one else weight)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("plus_one", [False, True])
def test_norms(dtype: torch.dtype, shape: tuple[int, ...], view: bool, plus_one: bool, device: str) -> None:
    torch.manual_seed(0)
    x, residual = (random(shape, dtype, device, view) for _ in range(2))
    weight = random(shape[-1:], dtype, device)
    got = rms_norm(x, weight, 0.1, plus_one)
    assert got.is_contiguous()
    assert near(got, normed(x, weight, 0.1, plus_one))
    total, got = add_rms_norm(x, residual, weight, 0.1, plus_one)
    assert near(total, x.double() + residual.double())
    assert near(got, normed(total, weight, 0.1, plus_one))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1500)])
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_activations(dtype: torch.dtype, shape: tuple[int, ...], view: bool, kind: str, device: str) -> None:
    torch.manual_seed(0)
    gate, up = (random(shape, dtype, device, view) for _ in range(2))
    f = torch.nn.functional
    want = {"silu": f.silu, "gelu": f.gelu, "gelu_tanh": lambda g: f.gelu(g, approximate="tanh")}[kind](gate.double())
    got = activate_and_multiply(gate, up, kind)
    assert got.is_contiguous()
    assert near(got, want * up.double())


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_activations_of_large_numbers(kind: str, device: str) -> None:
    gate = torch.tensor([-3e38, -1e4, -100.0, 100.0, 1e4, float("inf")], dtype=torch.bfloat16, device=device)
    got = activate_and_multiply(gate, torch.ones_like(gate), kind)
    assert torch.equal(got, gate.clamp_min(0))


def test_nan_stays(device: str) -> None:
    x = torch.ones(3, 40, dtype=torch.float16, device=device)
    x[1, 7] = float("nan")
    weight = torch.ones(40, dtype=torch.float16, device=device)
    got = rms_norm(x, weight, 1e-6, False)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()
    got = activate_and_multiply(x, x, "silu")
    assert got.isnan().sum() == 1
    assert got[1, 7].isnan()


def test_nothing_is_empty(device: str) -> None:
    x = torch.empty(0, 8, dtype=torch.float16, device=device)
    weight = torch.ones(8, dtype=torch.float16, device=device)
    assert rms_norm(x, weight, 1e-6, False).shape == (0, 8)
    assert activate_and_multiply(x, x, "silu").shape == (0, 8)


X, W = torch.zeros(2, 8).half(), torch.zeros(8).half()


@pytest.mark.parametrize(
    ("name", "call", "given"),
    [
        ("x", rms_norm, (X.float(), W.float(), 0.1, False)),
        ("x", rms_norm, (torch.zeros(1, 20000).half(), torch.zeros(20000).half(), 0.1, False)),
        ("weight", rms_norm, (X, W[:4], 0.1, False)),
        ("weight", rms_norm, (X, torch.zeros(16).half()[::2], 0.1, False)),
        ("weight", rms_norm, (X, W.bfloat16(), 0.1, False)),
        ("residual", add_rms_norm, (X, X[:1], W, 0.1, False)),
        ("residual", add_rms_norm, (X, X.bfloat16(), W, 0.1, False)),
        ("gate", activate_and_multiply, (X.float(), X, "silu")),
        ("up", activate_and_multiply, (X, X[:1], "silu")),
        ("kind", activate_and_multiply, (X, X, "relu")),
    ],
)
def test_what_does_not_fit_is_named(name: str, call: Any, given: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        call(*given)


def test_are_found_and_trace(device: str) -> None:
    define_norms()
    x, weight = random((2, 8), torch.float16, device), random((8,), torch.float16, device)
    for name, given in (
        ("rms_norm", (x, weight, 0.1, False)),
        ("add_rms_norm", (x, x, weight, 0.1, True)),
        ("activate_and_multiply", (x, x, "gelu")),
    ):
        found = kernels.function(name, "cuda")
        assert found is getattr(torch.ops.quanto_cuda, name).default
        torch.library.opcheck(found, given)
