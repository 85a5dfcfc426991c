# SPDX-License-Identifier: Apache-2.0
"""Quantizing by the options a user gives: every value lies within half a step of its code, whatever they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import quanto
from quanto import QTensor, Scheme

QTYPES = sorted(quanto.qtypes)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALES |= {"e8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}


def _elements(name: str) -> Tensor:
    """Every finite value of a code, sorted."""
    q = quanto.qtypes[name]
    if q.is_integer:
        return torch.arange(-(2 ** (q.bits - 1)), 2 ** (q.bits - 1)).double()
    values = torch.tensor(q.table) if q.table else torch.arange(256, dtype=torch.int32).to(torch.uint8).view(q.element)
    values = values.double().unique()
    return values[values.isfinite()]


def _each(t: Tensor, q: QTensor) -> Tensor:
    """A scale or zero point for each element."""
    t = t.double()
    for dim, (block, n) in enumerate(zip(q.block_size, q.shape, strict=False)):
        t = t.repeat_interleave(block, dim).narrow(dim, 0, n)
    return t.expand(q.shape)


def _assert_half_step(x: Tensor, q: QTensor) -> None:
    """No value is further away than half the distance of its neighbours among the values of its block.

    Beyond that, float32 arithmetic may add 1e-6 of the value and 1e-5 of the step.
    """
    scale = _each(q.scale, q) * (1.0 if q.global_scale is None else q.global_scale.double())
    zero = torch.zeros(()) if q.zero_point is None else _each(q.zero_point, q)
    points = (_elements(q.qtype.name) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    x = x.double()
    above = torch.searchsorted(points.contiguous(), x.unsqueeze(-1)).clamp(1, points.shape[-1] - 1)
    half = (points.gather(-1, above) - points.gather(-1, above - 1)).squeeze(-1) / 2
    error = (x - q.dequantize(torch.float64)).abs()
    assert (error <= half * (1 + 1e-5) + 1e-6 * x.abs()).all(), f"{q}: off by {(error / half).max()} half steps"


@st.composite
def _options(draw: st.DrawFn, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    q = quanto.qtypes[name]
    options: dict[str, Any] = {}
    if q.block is None:
        options = draw(
            st.sampled_from(
                [
                    {},
                    {"granularity": "tensor"},
                    {"granularity": "channel"},
                    {"granularity": "group"},
                    {"group_size": 32},
                    {"group_size": 7},
                    {"group_size": 1000},
                    {"block_size": tuple(max(n * 2 // 3, 1) for n in shape)},
                    {"block_size": shape},
                ]
            )
        )
    if q.scale_dtype is None and draw(st.booleans()):
        options = options | {"scale_dtype": draw(st.sampled_from(sorted(SCALES)))}
    return options | ({"symmetric": draw(st.booleans())} if q.is_integer else {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", QTYPES)
@given(data=st.data())
def test_within_half_a_step(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    shape = (*data.draw(st.lists(st.integers(1, 4), max_size=2)), data.draw(st.sampled_from([1, 5, 32, 50, 64, 100])))
    options = data.draw(_options(name, shape))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    # every scale dtype must reach the largest value: those of int2 in e4m3 end at 448 * 1.5
    x = (torch.randn(shape, generator=generator) * 20).clamp(-60, 60)
    x[..., 0] = data.draw(st.sampled_from([60.0, -60.0, 41.3]))
    x = x.to(dtype)
    q = quanto.quantize_tensor(x, name, **options)
    assert isinstance(q, QTensor)
    assert (q.shape, q.dtype, q.requires_grad) == (x.shape, dtype, False)
    assert q.scale.dtype == (quanto.qtypes[name].scale_dtype or SCALES.get(options.get("scale_dtype"), dtype))
    _assert_half_step(x, q)


@pytest.mark.parametrize(
    ("options", "blocks", "scale"),
    [
        ({}, (1, 1, 100), (2, 6, 1)),
        ({"granularity": "tensor"}, (), ()),
        ({"granularity": "channel"}, (1, 1, 100), (2, 6, 1)),
        ({"granularity": "group"}, (1, 1, 100), (2, 6, 1)),
        ({"group_size": 50}, (1, 1, 50), (2, 6, 2)),
        ({"group_size": 32}, (1, 1, 32), (2, 6, 4)),
        ({"block_size": (2, 3, 40)}, (2, 3, 40), (1, 2, 3)),
        ({"block_size": (9, 9, 999)}, (2, 6, 100), (1, 1, 1)),
        ({"block_size": [1, 6, 100]}, (1, 6, 100), (2, 1, 1)),
        ({"block_size": ()}, (), ()),
    ],
)
def test_blocks_follow_the_options(options: dict[str, Any], blocks: tuple[int, ...], scale: tuple[int, ...]) -> None:
    q = quanto.quantize_tensor(torch.ones(2, 6, 100), "int8", **options)
    assert (q.block_size, q.scale.shape) == (blocks, scale)


def test_a_scheme_in_the_place_of_options() -> None:
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    for scheme in (Scheme("int4", group_size=32), Scheme("int8", block=(2, 16)), quanto.presets["w2a16"]):
        q = quanto.quantize_tensor(x, scheme)
        assert (q.qtype, q.block_size) == (scheme.qtype, scheme.block_size((6, 64)))
    assert quanto.quantize_tensor(x, Scheme("int8"), block_size=(3, 64)).block_size == (3, 64)
    for options in ({"group_size": 32}, {"symmetric": False}, {"algorithm": "minmax"}, {"scale_dtype": "e8m0"}):
        with pytest.raises(ValueError, match="the scheme int8 says everything"):
            quanto.quantize_tensor(x, Scheme("int8"), **options)


def test_qtypes_by_any_name() -> None:
    x = torch.ones(2, 64)
    for name in ("int4", "qint4", quanto.qint4):
        assert quanto.quantize_tensor(x, name).qtype is quanto.qint4


@pytest.mark.parametrize("name", QTYPES)
def test_strides_and_gradients_do_not_matter(name: str) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    q = quanto.quantize_tensor(x.T, name)
    assert torch.equal(q, quanto.quantize_tensor(x.detach().T.contiguous(), name))
    assert q.codes.is_contiguous()
    assert not q.requires_grad


@pytest.mark.parametrize("name", QTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 64), (3, 0), (3, 64)])
def test_meta_tensors_and_empty_ones_have_the_right_parts(name: str, shape: tuple[int, ...]) -> None:
    real = quanto.quantize_tensor(torch.ones(shape), name)
    meta = quanto.quantize_tensor(torch.ones(shape, device="meta"), name)
    assert meta.device.type == "meta"
    assert (meta.shape, meta.block_size, meta.columns) == (real.shape, real.block_size, real.columns)
    for part in ("codes", "scale", "zero_point", "global_scale"):
        a, b = getattr(meta, part), getattr(real, part)
        assert (a is None) == (b is None)
        assert a is None or (a.shape, a.dtype) == (b.shape, b.dtype)
    assert real.dequantize().shape == shape
    assert torch.equal(quanto.quantize_tensor(torch.ones(shape), name), real)


def test_double_precision_is_kept_until_the_code() -> None:
    x = torch.tensor([[1.0, 0.5 + 2.0**-40, 0.5]], dtype=torch.float64)
    q = quanto.quantize_tensor(x, "int8", scale_dtype="e8m0")
    assert q.scale.item() == 2.0**-6
    assert (q.dtype, q.dequantize().dtype) == (torch.float64, torch.float64)
    assert q.tolist() == [[1.0, 0.5, 0.5]]


@pytest.mark.parametrize("x", [torch.ones(2, 2, dtype=torch.int32), torch.ones(2, dtype=torch.bool), [1.0], None])
def test_only_floats_are_quantized(x: Any) -> None:
    with pytest.raises(TypeError, match=r"x must be a floating tensor, got (torch\.int32|torch\.bool|list|NoneType)"):
        quanto.quantize_tensor(x, "int8")


@pytest.mark.parametrize(
    ("block_size", "message"),
    [
        ((64,), r"block_size \(64,\) must have one entry per dimension of shape \(6, 64\)"),
        ((1, 0), r"block_size must be positive, got \(1, 0\)"),
        ((-1, 64), r"block_size must be positive, got \(-1, 64\)"),
    ],
)
def test_block_sizes_must_fit(block_size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quanto.quantize_tensor(torch.ones(6, 64), "int8", block_size=block_size)


ACTIVATIONS = ("int8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
@given(shape=st.lists(st.integers(0, 5), max_size=2), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_activations_have_a_scale_per_token(
    name: str, dtype: torch.dtype, shape: list[int], size: int, seed: int
) -> None:
    x = torch.randn(*shape, size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    q = quanto.quantize_activation(x, name)
    assert (q.shape, q.dtype, q.scale.dtype) == (x.shape, dtype, torch.float32)
    assert q.scale.shape == (*shape, 1)
    peak = x.double().abs().amax(-1, keepdim=True) / quanto.qtypes[name].amax
    torch.testing.assert_close(q.scale.double(), peak, rtol=2.0**-22, atol=0)
    _assert_half_step(x, q)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_static_activations_saturate(name: str) -> None:
    x = torch.tensor([[-1e6, -3.0, -0.26, 0.0, 0.1, 3.0, 1e6, math.inf, -math.inf]])
    q = quanto.quantize_activation(x, name, torch.tensor(0.25))
    elements = _elements(name)
    low, high = elements[0] * 0.25, elements[-1] * 0.25
    want = elements[(x.double().unsqueeze(-1) / 0.25 - elements).abs().nan_to_num(0).argmin(-1)] * 0.25
    assert (q.block_size, q.scale.shape) == ((), ())
    assert torch.equal(q.dequantize(torch.float64)[:, 1:6], want[:, 1:6])
    assert q.dequantize(torch.float64)[0, [0, 6, 7, 8]].tolist() == [low, high, high, low]


def test_wrong_activations_are_refused() -> None:
    x = torch.ones(3, 4)
    for name in ("int4", "nf4", "mxfp8"):
        with pytest.raises(ValueError, match=f"activations must be int8 or float8, got {name}"):
            quanto.quantize_activation(x, name)
    with pytest.raises(TypeError, match=r"x must be a floating tensor, got torch\.int64"):
        quanto.quantize_activation(x.long(), "int8")
    with pytest.raises(ValueError, match=r"scale must be one number, got the shape \(4,\)"):
        quanto.quantize_activation(x, "int8", torch.ones(4))
