# SPDX-License-Identifier: Apache-2.0
"""Absmax: within half a step of every value, at every granularity, and scales that clip nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quanto
from quanto import reference
from quanto.quantizers import AbsmaxQuantizer, Target, get_quantizer, register_quantizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QTYPES = sorted(quanto.qtypes)
#: powers of ten that leave room for a format's scale in the dtype
MAGNITUDES = {torch.float32: (-28, 28), torch.bfloat16: (-28, 28), torch.float16: (-2, 3)}


def _quantize(x: torch.Tensor, qtype: str, **options: Any) -> quanto.QTensor:
    symmetric = True if quanto.qtypes[qtype].is_integer else None
    return quanto.quantize_tensor(x, qtype, symmetric=symmetric, algorithm="absmax", **options)


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_within_half_a_step(
    qtype: str, dtype: torch.dtype, make: Any, granularities: Any, assert_half_step: Any, data: st.DataObject
) -> None:
    shape = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 40)))
    magnitude = 10.0 ** data.draw(st.integers(*MAGNITUDES[dtype]))
    blocks = data.draw(st.sampled_from(sorted(granularities(shape).items())))[1]
    x = make(shape, data.draw(st.integers(0, 999)), magnitude, dtype)
    assert_half_step(x, _quantize(x, qtype, block_size=blocks))


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("shape", [(3, 100), (100,), (2, 3, 70)])
def test_default_blocks_of_any_rank(qtype: str, shape: tuple[int, ...], make: Any, assert_half_step: Any) -> None:
    x = make(shape, 0, 1.0, torch.float32)
    assert_half_step(x, _quantize(x, qtype))


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16", "e8m0", "e4m3"])
@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "int2", "float8_e4m3fn", "float8_e5m2", "nf4", "fp4"])
def test_every_scale_dtype(qtype: str, scale_dtype: str, make: Any, assert_half_step: Any) -> None:
    x = make((6, 64), 1, 16.0, torch.float32)
    q = _quantize(x, qtype, scale_dtype=scale_dtype, block_size=(1, 16))
    assert_half_step(x, q)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn])
def test_scales_are_the_next_value_above(scale_dtype: torch.dtype) -> None:
    peak = torch.logspace(-1, 3, 301).reshape(-1, 1)
    target = Target(quanto.qint8, (1, 1), scale_dtype)
    scale = AbsmaxQuantizer().parameters(peak, target).scale
    assert scale.dtype == scale_dtype
    exact = peak / 127.5
    assert (scale.double() >= exact.double()).all()
    bits = torch.uint8 if scale_dtype.itemsize == 1 else torch.int16
    below = (scale.view(bits) - torch.ones((), dtype=bits)).view(scale_dtype)
    assert (below.double() < exact.double()).all()


def test_exact_scales_are_kept() -> None:
    peak = torch.tensor([[127.5], [255.0], [63.75]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn):
        scale = AbsmaxQuantizer().parameters(peak, Target(quanto.qint8, (1, 1), dtype)).scale
        assert scale.float().flatten().tolist() == [1.0, 2.0, 0.5]


def test_nvfp4_has_two_levels() -> None:
    x = torch.zeros(2, 32)
    x[0, 0], x[0, 16], x[1, 0] = 6 * 448, 6 * 224, -6.0
    q = quanto.quantize_tensor(x, "nvfp4")
    assert q.global_scale is not None
    assert q.global_scale.dtype == torch.float32
    assert q.global_scale.item() == 1.0
    assert q.scale.float().tolist() == [[448.0, 224.0], [1.0, 2**-9]]  # zeros take the smallest scale, never 0
    assert torch.equal(q.dequantize(), x)


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("whole", [False, True])
def test_zeros_stay_zero(qtype: str, dtype: torch.dtype, whole: bool) -> None:
    x = torch.zeros(4, 48, dtype=dtype)
    if not whole:
        x[0] = 3
    for blocks in ((), (1, 48), (1, 16), (2, 16)):
        q = _quantize(x, qtype, block_size=blocks)
        rest = x.clone()
        rest[1 if blocks[:1] == (1,) else 2 :] = 0
        assert torch.equal(q.dequantize()[x == 0], x[x == 0])
        assert (q.scale.float() > 0).all()


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_values(qtype: str, dtype: torch.dtype, assert_half_step: Any) -> None:
    top = torch.finfo(dtype).max
    x = torch.tensor([[top, -top, top / 2, 0.0], [1.0, -top / 8, top / 3, 1.0]], dtype=dtype)
    for blocks in ((), (1, 4)):
        q = _quantize(x, qtype, block_size=blocks)
        assert q.dequantize(torch.float64).isfinite().all()
        assert_half_step(x, q)


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_values(qtype: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    least = tiny * torch.finfo(dtype).eps  # the smallest subnormal
    x = torch.tensor([[tiny, -tiny, tiny / 2, 0.0], [least, -least, 0.0, least * 7]], dtype=dtype)
    for blocks in ((), (1, 4)):
        dq = _quantize(x, qtype, block_size=blocks).dequantize(torch.float64)
        assert dq.isfinite().all()
        # What is below the smallest scale may vanish, but nothing grows beyond the largest input by more than a step.
        assert (dq.abs() <= 2 * tiny).all()
        assert (dq * x.double() >= 0).all()


@pytest.mark.parametrize("scale_dtype", ["float16", "e4m3"])
@pytest.mark.parametrize("qtype", ["int8", "int4", "float8_e4m3fn", "nf4", "fp4"])
def test_scales_saturate_where_their_dtype_ends(qtype: str, scale_dtype: str) -> None:
    x = torch.tensor([[3e8, -1e8, 0.0, 5.0]])
    q = _quantize(x, qtype, scale_dtype=scale_dtype)
    dtype = torch.float16 if scale_dtype == "float16" else torch.float8_e4m3fn
    assert q.scale.float().flatten().tolist() == [torch.finfo(dtype).max]
    assert q.dequantize().isfinite().all()


@pytest.mark.parametrize("qtype", QTYPES)
def test_nan_stays_in_its_block(qtype: str) -> None:
    x = torch.ones(2, 64)
    x[0, 3] = torch.nan
    dq = _quantize(x, qtype, block_size=(1, 32)).dequantize()
    assert dq[0, :32].isnan().all()
    assert torch.equal(dq[0, 32:], dq[1, 32:])
    assert not dq[1].isnan().any()


def test_infinity_stays_in_its_block() -> None:
    x = torch.ones(2, 64)
    x[0, 3] = torch.inf
    dq = _quantize(x, "nvfp4", block_size=(1, 16)).dequantize()
    assert dq[0, :16].isnan().all()
    assert torch.equal(dq[0, 16:], dq[1, 16:])
    assert torch.equal(dq[1], x[1])


def test_zero_points_are_refused() -> None:
    with pytest.raises(ValueError, match="algorithm 'absmax' is symmetric; use 'minmax' for zero points"):
        quanto.quantize_tensor(torch.ones(2, 4), "int8", symmetric=False, algorithm="absmax")


def test_algorithms_by_name() -> None:
    assert get_quantizer("absmax").name == "absmax"
    with pytest.raises(ValueError, match=r"unknown algorithm 'abs'; known: absmax, hqq, minmax, mse"):
        get_quantizer("abs")
    with pytest.raises(ValueError, match="quantizer 'absmax' is registered already"):
        register_quantizer(AbsmaxQuantizer())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn])
def test_rounding_up_lifts_zero_to_the_smallest_value(dtype: torch.dtype) -> None:
    least = torch.tensor([1 if dtype != torch.float8_e8m0fnu else 0])
    least = least.to(torch.uint8 if dtype.itemsize == 1 else torch.int16).view(dtype)
    for value in (0.0, 2.0**-140):
        up = reference.round_up_to(torch.tensor([value]), dtype)
        assert up.float().tolist() == least.float().tolist()
