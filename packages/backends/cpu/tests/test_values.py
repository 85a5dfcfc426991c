# SPDX-License-Identifier: Apache-2.0
"""Decoding, looking up, quantizing and packing, against core's references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weights import SHAPES, sample

from quanto import packing, reference
from quanto.blocks import scale_shape
from quanto.kernels.codes import compare_codes
from quanto.qtypes import get_qtype
from quanto_backend_cpu.specs import EVERY, INTEGERS

OPS = torch.ops.quanto_cpu


@pytest.mark.parametrize("group", [None, 0, 37, 64])
@pytest.mark.parametrize("qtype", sorted(EVERY))
def test_dequantize_and_embedding(qtype: str, group: int | None, isa: str) -> None:
    if qtype in ("mxfp4", "mxfp8", "nvfp4"):
        group = 32
    for shape in SHAPES:
        w = sample(qtype, shape, group, "int" if qtype in INTEGERS else "none")
        tail = [qtype, list(w.blocks), shape[1]]
        values = OPS.dequantize_panels(*w.panels, *tail, torch.float32)
        torch.testing.assert_close(values.double(), w.values, rtol=2e-6, atol=1e-7)
        indices = torch.tensor([[0, shape[0] - 1], [shape[0] // 2, 0]])
        rows = OPS.embedding_panels(indices, *w.panels, *tail, torch.float32)
        torch.testing.assert_close(rows.double(), w.values[indices], rtol=2e-6, atol=1e-7)
        if get_qtype(qtype).scale_dtype is None:
            assert torch.equal(OPS.dequantize(*w.canonical, *tail, torch.float32), values)
            assert torch.equal(OPS.embedding(indices.int(), *w.canonical, *tail, torch.float32), rows)
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(OPS.dequantize_panels(*w.panels, *tail, dtype), values.to(dtype))


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (0, 8)])
@pytest.mark.parametrize("block", [[], [1, 8], [1, 1]])
def test_nothing_to_decode(shape: tuple[int, int], block: list[int]) -> None:
    sizes = scale_shape(shape, block)
    codes, scale = torch.empty(shape, dtype=torch.int8), torch.ones(sizes)
    assert OPS.dequantize(codes, scale, None, None, "int8", block, shape[1], torch.float32).shape == shape
    x = torch.ones(2, shape[1])
    assert torch.equal(OPS.linear(x, codes, scale, None, None, None, "int8", block), torch.zeros(2, shape[0]))


def test_an_index_out_of_range_is_refused() -> None:
    w = sample("int8", (5, 32))
    with pytest.raises(RuntimeError, match="indices must be between 0 and 4"):
        OPS.embedding_panels(torch.tensor([5]), *w.panels, "int8", [1, 32], 32, torch.float32)


@pytest.mark.parametrize("zero", ["none", "int", "float"])
@pytest.mark.parametrize("qtype", sorted(EVERY - {"mxfp4", "mxfp8", "nvfp4"}))
def test_quantize(qtype: str, zero: str) -> None:
    if zero != "none" and qtype not in INTEGERS:
        pytest.skip("has no zero points")
    q = get_qtype(qtype)
    for shape in SHAPES:
        w = sample(qtype, shape, 32, zero)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        x[0, :3] = torch.tensor([float("nan"), 0.0, -0.0])
        args = (x, *w.canonical[1:], qtype, list(w.blocks))
        got, want = OPS.quantize(*args), reference.quantize(*args)
        assert compare_codes(got, want, q, shape[1]) is None


@pytest.mark.parametrize("qtype", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"])
def test_float8_is_rounded_as_torch_does(qtype: str) -> None:
    top = get_qtype(qtype).amax
    x = torch.cat([torch.linspace(-1.2, 1.2, 9999) * top, torch.logspace(-9, 5, 9999), torch.tensor([0.0, -0.0, 1e9])])
    x = x.view(1, -1)
    one = torch.ones(1, 1)
    got = OPS.quantize(x, one, None, None, qtype, [1, x.shape[1]])
    want = reference.quantize(x, one, None, None, qtype, [1, x.shape[1]])
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dynamic_quantize(dtype: torch.dtype, isa: str) -> None:
    x = torch.randn(3, 5, 129, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0], x[1, 1, 7] = 0, float("nan")
    codes, scale = OPS.dynamic_quantize(x, "int8", torch.float32)
    want_codes, want_scale = reference.dynamic_quantize(x, "int8", torch.float32)
    torch.testing.assert_close(scale, want_scale, rtol=2e-7, atol=0, equal_nan=True)
    fine = want_scale.isfinite().squeeze(-1)
    assert compare_codes(codes[fine], want_codes[fine], get_qtype("int8"), 129) is None


@given(st.integers(0, 5), st.integers(1, 300), st.integers(1, 7))
def test_packing(rows: int, size: int, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, size), dtype=torch.uint8)
    packed = OPS.pack(codes, bits)
    assert torch.equal(packed, packing.pack(codes, bits))
    assert torch.equal(OPS.unpack(packed, bits, size), codes)
