# SPDX-License-Identifier: Apache-2.0
"""Min/max: within half a step of every value, exact zeros, zero points within the qtype's range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quanto
from quanto.quantizers import MinMaxQuantizer, Target

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = [name for name in sorted(quanto.qtypes) if quanto.qtypes[name].is_integer]
MAGNITUDES = {torch.float32: (-30, 35), torch.bfloat16: (-30, 35), torch.float16: (-2, 3)}


def _quantize(x: torch.Tensor, qtype: str, **options: Any) -> quanto.QTensor:
    return quanto.quantize_tensor(x, qtype, symmetric=False, **options)


@pytest.mark.parametrize("qtype", INTEGERS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_within_half_a_step(
    qtype: str, dtype: torch.dtype, make: Any, granularities: Any, assert_half_step: Any, data: st.DataObject
) -> None:
    shape = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 40)))
    magnitude = 10.0 ** data.draw(st.integers(*MAGNITUDES[dtype]))
    blocks = data.draw(st.sampled_from(sorted(granularities(shape).items())))[1]
    x = make(shape, data.draw(st.integers(0, 999)), magnitude, dtype)
    offset = data.draw(st.sampled_from([0.0, 1.0, -1.0])) * magnitude
    x = (x + offset).to(dtype)
    q = _quantize(x, qtype, block_size=blocks)
    assert q.zero_point is not None
    assert q.zero_point.dtype == torch.int8
    assert q.zero_point.shape == q.scale.shape
    assert q.zero_point.min() >= q.qtype.qmin
    assert q.zero_point.max() <= q.qtype.qmax
    assert_half_step(x, q)


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16", "e8m0", "e4m3"])
@pytest.mark.parametrize("qtype", INTEGERS)
def test_every_scale_dtype(qtype: str, scale_dtype: str, make: Any, assert_half_step: Any) -> None:
    x = make((6, 64), 1, 16.0, torch.float32) + 3
    assert_half_step(x, _quantize(x, qtype, scale_dtype=scale_dtype, block_size=(1, 16)))


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn])
def test_scales_are_the_next_value_above(scale_dtype: torch.dtype) -> None:
    x = torch.cat([torch.logspace(-1, 3, 301).reshape(-1, 1), torch.full((301, 1), -0.5)], 1)
    scale = MinMaxQuantizer().parameters(x, Target(quanto.qint4, (1, 2), scale_dtype, symmetric=False)).scale
    exact = (x[:, :1] - x[:, 1:]) / 15
    bits = torch.uint8 if scale_dtype.itemsize == 1 else torch.int16
    below = (scale.view(bits) - torch.ones((), dtype=bits)).view(scale_dtype)
    assert (scale.double() >= exact.double()).all()
    assert (below.double() < exact.double()).all()


def test_known_parameters() -> None:
    x = torch.tensor([[-4.0, 11.0], [0.0, 30.0], [-7.5, 0.0], [5.0, 15.0]])
    p = MinMaxQuantizer().parameters(x, Target(quanto.qint4, (1, 2), torch.float32, symmetric=False))
    assert p.scale.flatten().tolist() == [1.0, 2.0, 0.5, 1.0]  # the range always holds zero
    assert p.zero_point is not None
    assert p.zero_point.flatten().tolist() == [-4, -8, 7, -8]
    assert p.global_scale is None


@pytest.mark.parametrize("qtype", INTEGERS)
def test_zero_is_exact_beside_anything(qtype: str) -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) + torch.linspace(-3, 3, 64).reshape(-1, 1)
    x[:, 5] = 0
    assert torch.equal(_quantize(x, qtype).dequantize()[:, 5], torch.zeros(64))


@pytest.mark.parametrize("qtype", INTEGERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zero(qtype: str, dtype: torch.dtype) -> None:
    for x in (torch.zeros(4, 48, dtype=dtype), torch.eye(4, 48, dtype=dtype)):
        for blocks in ((), (1, 48), (1, 16), (2, 16)):
            q = _quantize(x, qtype, block_size=blocks)
            assert torch.equal(q.dequantize()[x == 0], x[x == 0])
            assert (q.scale > 0).all()


@pytest.mark.parametrize("qtype", INTEGERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_values(qtype: str, dtype: torch.dtype, assert_half_step: Any) -> None:
    top = torch.finfo(dtype).max
    x = torch.tensor([[top, -top, top / 2, 0.0], [1.0, top / 3, top, 1.0]], dtype=dtype)  # max - min overflows
    for blocks in ((), (1, 4)):
        assert_half_step(x, _quantize(x, qtype, block_size=blocks))


@pytest.mark.parametrize("qtype", INTEGERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_values(qtype: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    least = tiny * torch.finfo(dtype).eps  # the smallest subnormal
    x = torch.tensor([[tiny, -tiny, tiny / 2, 0.0], [least, -least, 0.0, least * 7]], dtype=dtype)
    dq = _quantize(x, qtype).dequantize(torch.float64)
    assert dq.isfinite().all()
    assert ((dq - x.double()).abs() <= tiny).all()


def test_nan_stays_in_its_block() -> None:
    x = torch.ones(2, 64)
    x[0, 3] = torch.nan
    dq = _quantize(x, "int4", block_size=(1, 32)).dequantize()
    assert dq[0, :32].isnan().all()
    assert torch.equal(dq[0, 32:], dq[1, 32:])
    assert torch.equal(dq[1], torch.ones(64))


def test_floats_have_no_zero_points() -> None:
    with pytest.raises(ValueError, match="algorithm 'minmax' needs an integer qtype, not nf4; use 'absmax'"):
        quanto.quantize_tensor(torch.ones(2, 4), "nf4", algorithm="minmax")
    with pytest.raises(ValueError, match="algorithm 'minmax' places zero points; use 'absmax'"):
        quanto.quantize_tensor(torch.ones(2, 4), "int4", symmetric=True, algorithm="minmax")
