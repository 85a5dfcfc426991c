# SPDX-License-Identifier: Apache-2.0
"""What each operator means, against formulas in float64 and integers that know nothing of packing and blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import quanto
from quanto import packing, reference

QTYPES = sorted(quanto.qtypes)
BLOCKS: dict[str, tuple[int, ...]] = {
    "tensor": (),
    "channel": (1, 70),
    "group": (1, 32),
    "odd": (1, 7),
    "block": (4, 32),
    "column": (10, 1),
}
SHAPE = (10, 70)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scale_shape(shape: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((n + b - 1) // b for n, b in zip(shape, blocks, strict=False))


def _each(t: Tensor, blocks: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """A scale or zero point for each element, in float64."""
    t = t.double()
    for dim, (b, n) in enumerate(zip(blocks, shape, strict=False)):
        t = t.repeat_interleave(b, dim).narrow(dim, 0, n)
    return t.expand(shape)


class Sample:
    """Random tensors of a weight and, in float64, the values they stand for."""

    def __init__(
        self,
        name: str,
        blocks: tuple[int, ...],
        zero: str = "none",
        seed: int = 0,
        shape: tuple[int, ...] = SHAPE,
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        q, g = quanto.qtypes[name], _generator(seed)
        plain = torch.randint(0, 2**q.bits, shape, generator=g)
        if q.is_integer:
            elements = plain.double() - 2 ** (q.bits - 1)
        elif q.table is not None:
            elements = torch.tensor(q.table).double()[plain]
        else:
            finite = [
                c for c, v in enumerate(torch.arange(256).to(torch.uint8).view(q.element).double()) if v.isfinite()
            ]
            plain = torch.tensor(finite)[plain % len(finite)]
            elements = plain.to(torch.uint8).view(q.element).double()
        # a row of codes is one long number, low bits first
        if q.is_integer and q.bits == 8:
            self.codes = (plain - 128).to(torch.int8)
        else:
            bits = (plain.unsqueeze(-1) >> torch.arange(q.bits) & 1).flatten(-2)
            bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
            self.codes = (bits << torch.arange(8)).sum(-1).to(torch.uint8)
        sizes = _scale_shape(shape, blocks)
        self.scale = 2 ** torch.randint(-6, 0, sizes, generator=g).float() * 1.25
        if q.scale_dtype == torch.float8_e8m0fnu or scale_dtype == torch.float8_e8m0fnu:
            self.scale = self.scale / 1.25
        self.scale = self.scale.to(q.scale_dtype or scale_dtype)
        self.zero = None
        if zero == "int":
            self.zero = torch.randint(-(2 ** (q.bits - 1)), 2 ** (q.bits - 1), sizes, generator=g).to(torch.int8)
        elif zero == "float":
            self.zero = torch.randint(-8, 8, sizes, generator=g).float() / 4
        self.shared = torch.tensor(0.75) if q.two_level else None
        self.name, self.blocks, self.size = name, blocks, shape[-1]
        shift = 0 if self.zero is None else _each(self.zero, blocks, shape)
        factor = _each(self.scale, blocks, shape) * (1.0 if self.shared is None else self.shared.double())
        self.elements, self.values = elements, (elements - shift) * factor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.codes, self.scale, self.zero, self.shared


def _zeros(name: str) -> tuple[str, ...]:
    return ("none", "int", "float") if quanto.qtypes[name].is_integer else ("none",)


def _every(name: str) -> list[Sample]:
    return [Sample(name, blocks, zero) for blocks in BLOCKS.values() for zero in _zeros(name)]


def _assert_near(got: Tensor, want: Tensor, unit: Tensor, tolerance: float = 1e-6) -> None:
    """Elementwise; `unit` is the sum of the magnitudes of the terms."""
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= tolerance * unit).all(), float(((got - want).abs() / unit).max())


@pytest.mark.parametrize("name", QTYPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dequantize(name: str, dtype: torch.dtype) -> None:
    for sample in _every(name):
        got = reference.dequantize(*sample.tensors, name, sample.blocks, sample.size, dtype)
        # scales are 1.25 times powers of two and zero points quarters: float32 holds every value of a narrow qtype
        exact = sample.values if dtype == torch.float64 else sample.values.float()
        assert got.dtype == dtype
        torch.testing.assert_close(got, exact.to(dtype), rtol=0 if name != "nf4" else torch.finfo(dtype).eps, atol=0)


@given(data=st.data())
def test_dequantize_any_shape_and_block(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(QTYPES))
    shape = (*data.draw(st.lists(st.integers(0, 5), max_size=2)), data.draw(st.integers(1, 40)))
    blocks = data.draw(st.one_of(st.just(()), st.tuples(*(st.integers(1, max(n, 1)) for n in shape))))
    zero = data.draw(st.sampled_from(_zeros(name)))
    scale_dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu]))
    sample = Sample(name, blocks, zero, data.draw(st.integers(0, 99)), shape, scale_dtype)
    got = reference.dequantize(*sample.tensors, name, blocks, shape[-1], torch.float64)
    torch.testing.assert_close(got, sample.values, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", QTYPES)
def test_quantize_gives_the_codes_of_their_values_back(name: str) -> None:
    q = quanto.qtypes[name]
    for sample in _every(name):
        codes = reference.quantize(sample.values.float(), *sample.tensors[1:], name, sample.blocks)
        assert (codes.dtype, codes.shape) == (sample.codes.dtype, sample.codes.shape)
        again = reference.decode(packing.unpack(codes, q.bits, sample.size), q, torch.float64)
        assert torch.equal(again, sample.elements)


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_quantize_rounds_before_an_integer_zero_point(name: str) -> None:
    x = torch.tensor([[0.0, 0.5, 1.5, -0.5, -1.5, 0.49, 1e9, -1e9, torch.nan]])
    q, zero = quanto.qtypes[name], 1
    codes = reference.quantize(x, torch.tensor(1.0), torch.tensor(zero, dtype=torch.int8), None, name, ())
    got = reference.decode(packing.unpack(codes, q.bits, 9), q).flatten().tolist()
    low, high = -(2 ** (q.bits - 1)), 2 ** (q.bits - 1) - 1
    rounded = [0, 0, 2, 0, -2, 0]  # ties to even
    assert got == [min(max(v + zero, low), high) for v in rounded] + [high, low, 0]


# -- activations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dynamic_quantize(name: str, scale_dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 50, generator=_generator(0)) * 10.0 ** torch.arange(-1, 3).reshape(4, 1, 1)
    x[1, 1] = 0
    codes, scale = reference.dynamic_quantize(x, name, scale_dtype)
    amax = quanto.qtypes[name].amax
    want = x.double().abs().amax(-1, keepdim=True) / amax
    want[1, 1] = 1
    assert (scale.dtype, scale.shape) == (scale_dtype, (4, 3, 1))
    assert (scale.double() >= want * (1 - 2.0**-23)).all()
    assert (scale.double() <= want * (1 + torch.finfo(scale_dtype).eps) + 2.0**-24).all()  # float16's least step
    elements = reference.decode(codes, quanto.qtypes[name], torch.float64)
    step = 1.0 if name == "int8" else elements.abs().clamp_min(2.0**-14) / (8 if "e4m3" in name else 4)
    assert ((x.double() / scale.double() - elements).abs() <= step / 2 * (1 + 1e-5) + 1e-5).all()


def test_dynamic_quantize_treats_each_row_alone() -> None:
    x = torch.randn(5, 16, generator=_generator(0))
    x[2, 3], x[3, 3] = torch.nan, torch.inf
    codes, scale = reference.dynamic_quantize(x, "int8", torch.float32)
    assert scale[2].isnan()
    for row in (0, 1, 4):
        alone = reference.dynamic_quantize(x[row], "int8", torch.float32)
        assert torch.equal(alone[0], codes[row])
        assert torch.equal(alone[1], scale[row])
    for shape in ((0, 16), (3, 0)):
        empty, scales = reference.dynamic_quantize(torch.ones(shape), "int8", torch.float32)
        assert empty.shape == shape
        assert torch.equal(scales, torch.ones(shape[0], 1))


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QTYPES)
def test_linear_and_its_gradient(name: str) -> None:
    x, bias, grad = (torch.randn(*s, generator=_generator(1)) for s in ((2, 3, 70), (10,), (2, 3, 10)))
    for sample in _every(name):
        w, unit = sample.values, sample.values.abs()
        y = reference.linear(x, *sample.tensors, bias, name, sample.blocks)
        _assert_near(y, x.double() @ w.T + bias.double(), x.double().abs() @ unit.T + bias.double().abs())
        back = reference.linear_input_grad(grad, *sample.tensors, name, sample.blocks, 70)
        _assert_near(back, grad.double() @ w, grad.double().abs() @ unit)
        exact = reference.linear(x.double(), *sample.tensors, None, name, sample.blocks)
        _assert_near(exact, x.double() @ w.T, x.double().abs() @ unit.T, 1e-14)


def _integers(bits: int, *shape: int, extreme: bool = False) -> Tensor:
    """int64 of the whole range, or of its two ends alone."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if extreme:
        return torch.randint(0, 2, shape, generator=_generator(bits)) * (high - low) + low
    return torch.randint(low, high + 1, shape, generator=_generator(bits))


def _packed(values: Tensor, bits: int) -> Tensor:
    return values.to(torch.int8) if bits == 8 else packing.pack((values + 2 ** (bits - 1)).to(torch.uint8), bits)


def _scaled(x: Tensor, w: Tensor, bits: int, **given: Any) -> Tensor:
    """`scaled_linear` of int8 activations and integer weights; everything not given is 1 or absent."""
    n, k = w.shape
    arguments = {"x_scale": torch.ones(()), "scale": torch.ones(n, 1), "zero": None, "bias": None, "out": None} | given
    return reference.scaled_linear(
        x.to(torch.int8), arguments["x_scale"], _packed(w, bits), arguments["scale"], arguments["zero"], None,
        arguments["bias"], "int8", f"int{bits}", (1, k), arguments["out"], torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("size", [1, 100, 1024, 1025, 5000])
@pytest.mark.parametrize("affine", [False, True])
def test_integers_accumulate_exactly(bits: int, size: int, affine: bool) -> None:
    for extreme in (True, False):
        x, w = _integers(8, 6, size, extreme=extreme), _integers(bits, 7, size, extreme=extreme)
        x[0], x[1], w[0] = -128, 127, -(2 ** (bits - 1))
        zero = _integers(bits, 7, 1, extreme=True) if affine else torch.zeros(7, 1, dtype=torch.int64)
        zero[0] = 2 ** (bits - 1) - 1 if affine else 0  # every term is 127 * 255, and float32 counts to 2**24
        exact = x @ (w - zero).T  # int64
        got = _scaled(x, w, bits, zero=zero.to(torch.int8) if affine else None)
        assert torch.equal(got, exact.float())


def test_sums_beyond_float32_keep_their_low_bits() -> None:
    x = torch.full((1, 5000), 127)
    w = torch.full((1, 5000), 127)
    w[0, 0] = 126
    total = 127 * 127 * 5000 - 127
    assert total > 2**24
    # the bias of minus the sum, in ticks: what is left is exact only if the sum is
    got = _scaled(x, w, 8, bias=torch.tensor([-(127.0**2) * 5000]))
    assert got.item() == -127.0


@given(data=st.data())
def test_a_static_scale_adds_the_bias_in_whole_ticks(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 999))
    x, w = torch.randint(-128, 128, (3, 40), generator=_generator(seed)), _integers(8, 5, 40)
    x_scale = torch.tensor(data.draw(st.sampled_from([2.0**-7, 0.013, 1.7])))
    scale = torch.rand(5, 1, generator=_generator(seed)) / 50 + 1e-3
    bias = torch.randn(5, generator=_generator(seed)) * data.draw(st.sampled_from([1e-3, 1.0, 100.0]))
    unit = x_scale * scale.reshape(1, -1)
    ticks = (bias / unit).round()
    got = _scaled(x, w, 8, x_scale=x_scale, scale=scale, bias=bias)
    assert torch.equal(got, ((x @ w.T) + ticks.long()).float() * unit)
    assert ((got.double() - ((x @ w.T) * unit.double() + bias.double())).abs() <= unit * 0.501 + 1e-6 * got.abs()).all()


def test_a_scale_per_token_adds_the_bias_as_it_is() -> None:
    w, bias = _integers(8, 5, 40), torch.randn(5, generator=_generator(0))
    scale = torch.rand(5, 1, generator=_generator(1)) / 50
    for tokens in (4, 1):  # a single token is no exception
        x = torch.randint(-128, 128, (tokens, 40), generator=_generator(2))
        x_scale = torch.rand(tokens, 1, generator=_generator(3))
        x[0] = 0
        got = _scaled(x, w, 8, x_scale=x_scale, scale=scale, bias=bias)
        assert torch.equal(got, (x @ w.T).float() * (x_scale * scale.T) + bias)
        assert torch.equal(got[0], bias)


def test_a_bias_too_large_for_ticks_is_added_as_it_is() -> None:
    total = torch.tensor([[3, -4]])
    scale = torch.tensor([[1e-12, 1.0]])
    got = reference.rescale(total, torch.tensor(1.0), scale, torch.tensor([5.0, 5.25]))
    assert got.tolist() == [[5.0, 1.0]]  # -4 + 5, in ticks of 1
    assert reference.rescale(total, torch.tensor(0.5), scale, None)[0, 1].item() == -2.0
    assert reference.rescale(total, torch.tensor(1.0), scale, torch.tensor([torch.nan, 0.0])).isnan().tolist() == [
        [True, False]
    ]


@pytest.mark.parametrize("out_scale", [0.5, 3.0])
def test_results_are_rescaled_to_codes(out_scale: float) -> None:
    x, w = _integers(8, 2, 3, 40), _integers(8, 5, 40)
    got = _scaled(x, w, 8, scale=torch.full((5, 1), 2.0**-7), out=torch.tensor(out_scale))
    assert got.dtype == torch.int8
    exact = (x.reshape(6, 40) @ w.T).double() / 128 / out_scale
    assert torch.equal(got.reshape(6, 5), exact.round().clamp(-128, 127).to(torch.int8))
    codes = reference.scaled_linear(
        torch.zeros(2, 40, dtype=torch.uint8), torch.ones(()), w.to(torch.int8), torch.ones(5, 1), None, None,
        torch.tensor([1.0, -2.0, 1e9, 0.0, 3.0]), "float8_e4m3fn", "int8", (1, 40), torch.tensor(1.0), torch.float32,
    )  # fmt: skip
    assert codes.view(torch.float8_e4m3fn).float().tolist() == [[1.0, -2.0, 448.0, 0.0, 3.0]] * 2


@pytest.mark.parametrize("x_name", ["int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", QTYPES)
def test_scaled_linear_of_everything(x_name: str, name: str) -> None:
    x_codes, tokens = reference.dynamic_quantize(torch.randn(2, 3, 70, generator=_generator(1)), x_name, torch.float32)
    elements = reference.decode(x_codes, quanto.qtypes[x_name], torch.float64)
    bias = torch.randn(10, generator=_generator(2))
    for sample in _every(name):
        for x_scale in (tokens, torch.tensor(0.03)):
            x = elements * x_scale.double()
            y = reference.scaled_linear(
                x_codes, x_scale, *sample.tensors, bias, x_name, name, sample.blocks, None, torch.float32
            )
            # codes and zero points apart: both may be far larger than their difference
            top = sample.scale.double().max()
            unit = x.abs() @ (sample.values.abs() + sample.elements.abs() * top).T + bias.double().abs()
            ticks = 0.0 if x_scale.ndim else 0.5 * x_scale.double() * top
            want = x @ sample.values.T + bias.double()
            assert ((y.double() - want).abs() <= 1e-6 * unit + ticks).all()


# -- experts and tables ------------------------------------------------------------------------------------------------

EXPERTS: dict[str, tuple[int, ...]] = {
    "tensor": (), "channel": (1, 1, 70), "group": (1, 1, 32), "block": (1, 4, 32), "expert": (1, 10, 70),
    "pairs of experts": (2, 10, 7),
}  # fmt: skip


@pytest.mark.parametrize("granularity", EXPERTS)
@pytest.mark.parametrize("name", ["int8", "int4", "float8_e4m3fn", "nvfp4"])
def test_grouped_linear(name: str, granularity: str) -> None:
    blocks = EXPERTS[granularity]
    x, bias = torch.randn(9, 70, generator=_generator(1)), torch.randn(4, 10, generator=_generator(2))
    for zero in _zeros(name):
        sample = Sample(name, blocks, zero, shape=(4, 10, 70))
        for ends in ([2, 5, 6, 9], [0, 0, 9, 9], [0, 0, 0, 0], [3, 3, 3, 7], [4, 2, 2, 8], [1, 2, 3, 50]):
            offsets = torch.tensor(ends, dtype=torch.int32)
            y = reference.grouped_linear(x, *sample.tensors, bias, offsets, name, blocks)
            for row in range(9):
                expert = next((e for e, end in enumerate(ends) if row < end), None)
                if expert is None:
                    assert not y[row].any()
                    continue
                w, b = sample.values[expert], bias[expert].double()
                unit = w.abs() @ x[row].double().abs() + b.abs()
                _assert_near(y[row], w @ x[row].double() + b, unit)


def test_grouped_linear_without_tokens_or_bias() -> None:
    sample = Sample("int4", (1, 1, 32), shape=(4, 10, 70))
    none = torch.zeros(4, dtype=torch.int32)
    assert reference.grouped_linear(torch.ones(0, 70), *sample.tensors, None, none, "int4", (1, 1, 32)).shape == (0, 10)
    x = torch.ones(2, 70)
    x[0] = torch.nan
    y = reference.grouped_linear(x, *sample.tensors, None, none + 2, "int4", (1, 1, 32))
    assert y[0].isnan().all()
    _assert_near(y[1], sample.values[0].sum(-1), sample.values[0].abs().sum(-1))


@pytest.mark.parametrize("granularity", BLOCKS)
@pytest.mark.parametrize("name", QTYPES)
def test_embedding(name: str, granularity: str) -> None:
    blocks = BLOCKS[granularity]
    for zero in _zeros(name):
        sample = Sample(name, blocks, zero)
        for indices in (torch.tensor([[9, 0, 4], [4, 4, 7]]), torch.tensor(5, dtype=torch.int32), torch.ones(0).long()):
            rows = reference.embedding(indices, *sample.tensors, name, blocks, 70, torch.float64)
            assert rows.shape == (*indices.shape, 70)
            torch.testing.assert_close(rows, sample.values[indices.long()], rtol=1e-15, atol=0)


@pytest.mark.parametrize("index", [-1, 10])
def test_embedding_refuses_indices_beyond_the_table(index: int) -> None:
    for blocks in BLOCKS.values():
        with pytest.raises(IndexError):
            reference.embedding(torch.tensor([index]), *Sample("int4", blocks).tensors, "int4", blocks, 70, torch.half)
