# SPDX-License-Identifier: Apache-2.0
"""One token of exact compute is multiplied as digits of integers; nothing of that may show in its results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accuracy import activations, expected, roundings
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from weights import Sample, sample

import quanto_backend_cpu
from quanto import reference
from quanto.kernels import kernels
from quanto_backend_cpu.specs import INTEGERS

OPS = torch.ops.quanto_cpu
# Layers of 80 features and fewer take floats; these have more.
QTYPES = sorted(INTEGERS | {"fp4", "mxfp4", "nvfp4"})
# A sum of floats is as far from its value as this, of the square root of the sum of its squared products.
FLOATS = 4e-6


def error(y: Tensor, x: Tensor, w: Sample) -> float:
    """The largest error of an output, where the unit is that of its own products."""
    products = x.double()[:, None] * w.values
    return ((y.double() - products.sum(-1)).abs() / products.square().sum(-1).sqrt()).nan_to_num(0).max().item()


def multiply(x: Tensor, w: Sample) -> Tensor:
    return OPS.linear_panels(x, *w.panels, None, w.qtype, list(w.blocks))


@pytest.mark.parametrize("qtype", QTYPES)
def test_one_value_far_above_the_others(qtype: str, isa: str) -> None:
    """Weights that are zero there still see all digits of the others, up to thousands of times as large."""
    if isa == "portable":
        pytest.skip("its floats lose digits to the offset of codes")
    w = sample(qtype, (512, 512), 32 if qtype in ("mxfp4", "nvfp4") else 128)
    rows = w.values[:, 77] == 0
    assert rows.any()
    for above in (8.0, 40.0, 300.0, 5e3):
        x = activations(1, 512)
        x[0, 77] = above
        y = multiply(x, w)
        assert error(y, x, w) < FLOATS
        x[0, 77] = 0
        assert error(y[:, rows], x, replace(w, values=w.values[rows])) < FLOATS


def test_one_value_above_all_digits(isa: str) -> None:
    w = sample("int4", (112, 512), 128)
    x = activations(1, 512)
    x[0, 77] = 1e9
    want, unit = expected(x, w, None)
    assert ((multiply(x, w).double() - want).abs() <= FLOATS * unit + roundings(x, w)).all()


def test_bytes_see_what_lies_below_all_digits(isa: str) -> None:
    """Floats of int8 have no offset to lose digits to; those of other codes may have one."""
    w = sample("int8", (512, 512), 128)
    rows = w.values[:, 77] == 0
    assert rows.any()
    x = activations(1, 512)
    x[0, 77] = 1e9
    y = multiply(x, w)[:, rows]
    x[0, 77] = 0
    assert error(y, x, replace(w, values=w.values[rows])) < FLOATS


def test_zero_points_keep_their_bits(isa: str) -> None:
    """The offset of bytes, 128, would take seven of them from a zero point that is no integer."""
    w = sample("int8", (112, 512), 128, "float")
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(-2, 3, (112, 512), generator=generator, dtype=torch.int8)
    zero = torch.rand(112, 4, generator=generator)
    canonical = (codes.view(w.canonical[0].dtype), w.canonical[1], zero, *w.canonical[3:])
    w = replace(
        w,
        panels=kernels.layouts["cpu.panels"].pack(canonical, "int8", w.blocks, 512),
        values=reference.dequantize(*canonical, "int8", w.blocks, 512, torch.float64),
    )
    x = 1 + torch.rand(1, 512, generator=generator)
    assert error(multiply(x, w), x, w) < FLOATS


@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "int2", "fp4"])
def test_small_scales_of_small_values(qtype: str, isa: str) -> None:
    """The product of a digit's step and a scale may be no normal float where the result is."""
    w, x = sample(qtype, (112, 512), 128), activations(1, 512)
    y = multiply(x, w)
    w.panels[1].mul_(2.0**-68)
    assert torch.equal(multiply(x * 2.0**-46, w), y * 2.0**-114)


@pytest.mark.parametrize("qtype", sorted(INTEGERS))
def test_integers_are_multiplied_without_error(qtype: str, isa: str) -> None:
    w = sample(qtype, (112, 512), 512, "int")
    for tensors in (w.panels, w.canonical):
        tensors[1].fill_(1)
    values = reference.dequantize(*w.canonical, qtype, w.blocks, 512, torch.float64)
    x = torch.randint(-200, 201, (1, 512), generator=torch.Generator().manual_seed(3)).float()
    y = multiply(x, w)
    assert torch.equal(y.double(), x.double() @ values.T)
    assert torch.equal(multiply(-x, w), -y)


@given(
    st.integers(1, 600),
    st.integers(1, 300),
    st.sampled_from(QTYPES),
    st.floats(1, 12),
    st.floats(0, 1),
    st.integers(-70, 70),
)
def test_heavy_tails_and_zeros(size: int, group: int, qtype: str, power: float, zeros: float, exponent: int) -> None:
    """Few large values, many small ones or none, of any magnitude."""
    fixed, zero = qtype in ("mxfp4", "nvfp4"), "float" if qtype in INTEGERS else "none"
    w = sample(qtype, (101, size), 32 if fixed else group, zero)
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(1, size, generator=generator)
    x = x.sign() * x.abs() ** power * 2.0**exponent * (torch.rand(1, size, generator=generator) >= zeros)
    (want, unit), rounding = expected(x, w, None), roundings(x, w)
    for isa in quanto_backend_cpu.instruction_sets():
        with quanto_backend_cpu.use(isa):
            assert ((multiply(x, w).double() - want).abs() <= FLOATS * unit + rounding).all()


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-30, 1e-18, 1e18, 1e25])
def test_values_of_any_size(value: float, isa: str) -> None:
    w = sample("int4", (97, 160), 32)
    x = activations(1, 160) * value
    torch.testing.assert_close(multiply(x, w).double(), x.double() @ w.values.T, rtol=1e-4, atol=abs(value) * 1e-5)
