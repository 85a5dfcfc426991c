# SPDX-License-Identifier: Apache-2.0
"""Linear layers against float64, element by element: every format, ragged sizes, both precisions, both layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from weights import SHAPES, Sample, sample

import quanto_backend_cpu
from quanto import reference
from quanto.nonlinearity import NONLINEARITIES
from quanto_backend_cpu.specs import EVERY, FLOAT8, INTEGERS, TABLES

OPS = torch.ops.quanto_cpu
TOKENS = (1, 2, 3, 5, 9, 13, 29)
# Of the unit sqrt(sum(x² w²)) + |bias|: float32 sums; int8 activations per block.
EXACT, INTEGER = 1e-5, 0.06


def _expected(x: Tensor, w: Sample, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    y, unit = x.double() @ w.values.T, (x.double().square() @ w.values.square().T).sqrt()
    if bias is not None:
        y, unit = y + bias.double(), unit + bias.double().abs()
    return y, unit.clamp_min(1e-30)


def _worst(y: Tensor, x: Tensor, w: Sample, bias: Tensor | None) -> float:
    expected, unit = _expected(x, w, bias)
    assert y.shape == expected.shape
    return float(((y.double() - expected).abs() / unit).max()) if y.numel() else 0.0


def _half_steps(x: Tensor, w: Sample) -> Tensor:
    """The most that rounding activations to int8 can do to each output: half a step of each, times its weight.

    A step is the largest magnitude over 127, or the largest sum of two neighbours where kernels limit that; the bytes
    of nf4 are half a step of their own off.
    """
    bound = x.double().abs().amax(1, keepdim=True) / 127 * w.values.abs().sum(1)
    if w.qtype == "nf4":
        bound += x.double().abs().sum(1, keepdim=True) * w.canonical[1].double().abs().amax(1) * 0.5 / 127
    return bound


def _roundings(x: Tensor, w: Sample) -> Tensor:
    """What rounding to float32 can do to each output where codes stand for values and an offset, taken off at the end.

    Of few features they may add up to little: so it is a share of the largest values that codes have, not of theirs.
    """
    codes, *others = w.canonical
    reach = torch.zeros_like(w.values)
    for byte in (0x00, 0x77, 0x80, 0x88, 0xAA, 0xFF):
        full = torch.full_like(codes.view(torch.uint8), byte).view(codes.dtype)
        values = reference.dequantize(full, *others, w.qtype, w.blocks, w.shape[1], torch.float64)
        reach = reach.maximum(values.abs().nan_to_num())
    return 1e-6 * x.double().abs() @ reach.T


def _x(tokens: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group", [None, 0, 16, 37, 128])
@pytest.mark.parametrize("qtype", sorted(EVERY))
def test_both_precisions(qtype: str, group: int | None, isa: str) -> None:
    fixed = qtype in ("mxfp4", "mxfp8", "nvfp4")
    if fixed and group is not None:
        pytest.skip("the format fixes its groups")
    for index, shape in enumerate(SHAPES):
        zeros = ("none", "int", "float") if qtype in INTEGERS else ("none",)
        zero = zeros[index % len(zeros)]
        w = sample(qtype, shape, group, zero, (torch.float32, torch.bfloat16, torch.float16)[index % 3])
        bias = _x(1, shape[0], 2)[0] if index % 2 else None
        for tokens in TOKENS:
            x = _x(tokens, shape[1])
            layouts = [("_panels", w.panels)] if fixed else [("_panels", w.panels), ("", w.canonical)]
            for suffix, tensors in layouts:
                call = [x, *tensors, bias, qtype, list(w.blocks)]
                assert _worst(getattr(OPS, f"linear{suffix}")(*call), x, w, bias) < EXACT, (shape, zero, tokens, suffix)
                y = getattr(OPS, f"linear_integer{suffix}")(*call)
                limit = EXACT if qtype in FLOAT8 else INTEGER
                assert _worst(y, x, w, bias) < limit, (shape, zero, tokens, suffix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qtype", sorted(EVERY))
def test_half_precision(qtype: str, dtype: torch.dtype, isa: str) -> None:
    zero = "float" if qtype in INTEGERS else "none"
    for shape, group in (((80, 256), 128), ((33, 1100), None), ((18, 90), 37)):
        group = 32 if qtype in ("mxfp4", "mxfp8", "nvfp4") else group
        w = sample(qtype, shape, group, zero, scale_dtype=dtype)
        bias = _x(1, shape[0], 2)[0]
        for tokens in (1, 2, 3, 8, 17, 43):
            x = _x(tokens, shape[1]).to(dtype)
            y = OPS.linear_panels(x, *w.panels, bias, qtype, list(w.blocks))
            assert y.dtype == dtype
            expected, unit = _expected(x, w, bias)
            rounded = torch.finfo(dtype).eps / 2
            assert ((y.double() - expected).abs() <= EXACT * unit + rounded * expected.abs() * (1 + 1e-6)).all()


@pytest.mark.parametrize("qtype", ["int8", "int4", "float8_e5m2"])
def test_a_row_left_over_of_many(qtype: str, isa: str) -> None:
    """Rows are prepared in parts; of 631, whose features take a megabyte for 64, the last part has a single one."""
    w = sample(qtype, (16, 8192), 128)
    x = _x(631, 8192).to(torch.bfloat16)
    y = OPS.linear_panels(x, *w.panels, None, qtype, list(w.blocks))
    expected, unit = _expected(x[-2:], w, None)
    assert ((y[-2:].double() - expected).abs() <= EXACT * unit + 2.0**-8 * expected.abs()).all()


@pytest.mark.parametrize("qtype", sorted(EVERY - {"mxfp4", "mxfp8", "nvfp4"}))
def test_int8_activations(qtype: str, isa: str) -> None:
    for group, shape in ((None, (33, 576)), (32, (7, 129)), (None, (16, 2049))):
        w = sample(qtype, shape, group, "int" if qtype in INTEGERS else "none")
        x, bias = _x(9, shape[1]), _x(1, shape[0], 3)[0]
        codes, scale = reference.dynamic_quantize(x, "int8", torch.float32)
        values = codes.double() * scale.double()
        call = [*w.panels, bias, "int8", qtype, list(w.blocks)]
        y = OPS.scaled_linear_panels(codes, scale, *call, None, torch.float32)
        assert _worst(y, values, w, bias) < EXACT
        static = torch.tensor(0.03)
        y = OPS.scaled_linear_panels(codes, static, *call, None, torch.float32)
        assert _worst(y, codes.double() * 0.03, w, bias) < EXACT
        out_scale = (y.abs().max() / 100).float()
        again = OPS.scaled_linear_panels(codes, static, *call, out_scale, torch.float32)
        assert again.dtype == torch.int8
        apart = (again.int() - (y / out_scale).round().clamp(-128, 127).int()).abs()
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 0.02  # ties


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities(name: str, dtype: torch.dtype, isa: str) -> None:
    """Over all that a float tells apart, in whole panels and in rows that are left; NaN and infinity as in torch."""
    ends = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 89.0, -89.0, 1e-30, -1e30, 3e38])
    bias = torch.cat([ends, torch.linspace(-15, 15, 1013)])
    w = sample("int8", (bias.numel(), 32))
    codes = torch.zeros(3, 32, dtype=torch.int8)
    for rows in (bias.numel(), 37):
        tensors = (w.canonical[0][:rows], w.canonical[1][:rows], None, None)
        call = [codes, torch.ones(3, 1), *tensors, bias[:rows], "int8", "int8", [1, 32], None, dtype, name]
        want = NONLINEARITIES[name](bias[:rows].double()).expand(3, -1)
        y = OPS.scaled_linear(*call)
        assert y.dtype == dtype
        rtol = 2e-5 if dtype == torch.float32 else 8e-3
        torch.testing.assert_close(y, want.to(dtype), rtol=rtol, atol=3e-7, equal_nan=True)
        call[-3] = torch.tensor(0.1)
        steps = (want / 0.1).nan_to_num(0.0).clamp(-128, 127)
        assert ((OPS.scaled_linear(*call).double() - steps).abs() <= 0.5001).all()


def test_an_unknown_nonlinearity_is_named() -> None:
    w = sample("int8", (16, 32))
    call = [torch.zeros(1, 32, dtype=torch.int8), torch.ones(1, 1), *w.panels, None, "int8", "int8", [1, 32], None]
    with pytest.raises(RuntimeError, match=r"nonlinearity must be one of relu, .* got tanh"):
        OPS.scaled_linear_panels(*call, torch.float32, "tanh")


@given(st.integers(0, 70), st.integers(0, 150), st.integers(0, 40), st.integers(1, 160), st.sampled_from(sorted(EVERY)))
def test_any_shape(rows: int, size: int, tokens: int, group: int, qtype: str) -> None:
    if qtype in ("mxfp4", "mxfp8", "nvfp4"):
        group = 32
    w = sample(qtype, (rows, max(size, 1)), group)
    x = _x(tokens, max(size, 1))
    expected, unit = _expected(x, w, None)
    rounding = EXACT * unit + _roundings(x, w)
    for isa in quanto_backend_cpu.instruction_sets():
        with quanto_backend_cpu.use(isa):
            y = OPS.linear_panels(x, *w.panels, None, qtype, list(w.blocks))
            assert ((y.double() - expected).abs() <= rounding).all()
            if qtype in INTEGERS | TABLES:
                y = OPS.linear_integer_panels(x, *w.panels, None, qtype, list(w.blocks))
                assert ((y.double() - expected).abs() <= _half_steps(x, w) + rounding).all()
                # Errors of few products don't cancel; modules leave those to exact compute.
                assert size < 64 or _worst(y, x, w, None) < INTEGER


@pytest.mark.parametrize("tokens", [1, 3, 30])
def test_nan_and_infinity_stay_in_their_row(tokens: int, isa: str) -> None:
    w = sample("int4", (33, 256), 128)
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = _x(tokens, 256)
        x[tokens // 2, 77] = bad
        expected = x.double() @ w.values.T
        for op, rows in (
            (OPS.linear_panels, x),
            (OPS.linear_integer_panels, x),
            (OPS.linear_panels, x.bfloat16()),
        ):
            y = op(rows, *w.panels, None, "int4", list(w.blocks))
            assert torch.equal(y.isnan(), expected.isnan())
            assert torch.equal(y.isinf(), expected.isinf())
            fine = expected.isfinite()
            torch.testing.assert_close(y[fine].double(), expected[fine], atol=0.2, rtol=0.04)


def test_nan_codes_of_float8(isa: str) -> None:
    w = sample("float8_e4m3fn", (20, 64))
    codes = w.canonical[0].clone()
    codes[3, 5], codes[18, 0] = 0x7F, 0xFF
    from quanto.kernels import kernels

    panels = kernels.layouts["cpu.panels"].pack((codes, *w.canonical[1:]), "float8_e4m3fn", w.blocks, 64)
    for tokens in (1, 20):
        y = OPS.linear_panels(_x(tokens, 64), *panels, None, "float8_e4m3fn", list(w.blocks))
        assert y[:, [3, 18]].isnan().all()
        assert not y[:, [0, 1, 2, 4, 17, 19]].isnan().any()
    assert torch.equal(kernels.layouts["cpu.panels"].unpack(panels, "float8_e4m3fn", w.blocks, 64)[0], codes)
    tail = ("float8_e4m3fn", list(w.blocks), 64, torch.float32)
    want = codes.view(torch.float8_e4m3fn).float() * w.canonical[1]
    for values in (OPS.dequantize_panels(*panels, *tail), OPS.dequantize(codes, *w.canonical[1:], *tail)):
        torch.testing.assert_close(values, want, rtol=1e-6, atol=0, equal_nan=True)  # nothing else of these rows


def test_tiny_activations(isa: str) -> None:
    x, codes = torch.zeros(1, 128), torch.ones(20, 128, dtype=torch.int8)
    x[0, :2] = torch.tensor([1e-37, -3e-37])  # 127 over these is infinite
    y = OPS.linear_integer(x, codes, torch.full((20, 1), 1e37), None, None, None, "int8", [1, 128])
    torch.testing.assert_close(y, torch.full((1, 20), -2.0), rtol=0.02, atol=0)


def test_subnormal_codes_survive_flushing(isa: str) -> None:
    w = sample("float8_e4m3fn", (16, 32))
    codes = (torch.arange(16 * 32, dtype=torch.int32) % 8).to(torch.uint8).view(16, 32)  # all below 2**-6
    expected = torch.ones(1, 32) @ codes.view(torch.float8_e4m3fn).float().T
    torch.set_flush_denormal(True)
    try:
        y = OPS.linear(torch.ones(1, 32), codes, torch.ones(16, 1), None, None, None, "float8_e4m3fn", [1, 32])
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
    assert w.shape == (16, 32)


def test_strides_ranks_and_offsets(isa: str) -> None:
    w = sample("int8", (33, 128))
    for view in (
        lambda: torch.randn(2, 3, 128),
        lambda: torch.randn(128),
        lambda: torch.randn(128, 5).t(),
        lambda: torch.randn(5, 256)[:, ::2],
        lambda: torch.randn(1, 128).expand(7, 128),
        lambda: torch.randn(5 * 128 + 1)[1:].view(5, 128),
    ):
        x = view()
        y = OPS.linear_panels(x, *w.panels, None, "int8", list(w.blocks))
        assert y.shape == (*x.shape[:-1], 33)
        assert _worst(y.reshape(-1, 33), x.reshape(-1, 128), w, None) < EXACT


def test_more_rows_than_are_prepared_at_once(isa: str) -> None:
    w = sample("int4", (20, 64), 32)
    x = _x(1100, 64)
    assert _worst(OPS.linear_panels(x, *w.panels, None, "int4", list(w.blocks)), x, w, None) < EXACT
    assert _worst(OPS.linear_integer_panels(x, *w.panels, None, "int4", list(w.blocks)), x, w, None) < INTEGER


WRONG = {
    "codes must have": lambda x, w: (x[:, :-8], *w.panels, None, w.qtype, list(w.blocks)),
    "scale must have": lambda x, w: (x, w.panels[0], w.panels[1][:-1], *w.panels[2:], None, w.qtype, list(w.blocks)),
    "bias must have 33 elements": lambda x, w: (x, *w.panels, torch.zeros(1), w.qtype, list(w.blocks)),
    "x must be float32": lambda x, w: (x.double(), *w.panels, None, w.qtype, list(w.blocks)),
    "qtype int5 is unknown": lambda x, w: (x, *w.panels, None, "int5", list(w.blocks)),
    "block_size must be": lambda x, w: (x, *w.panels, None, w.qtype, [1, 0]),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_arguments_are_named(sentence: str) -> None:
    w = sample("int8", (33, 128))
    with pytest.raises(RuntimeError, match=sentence):
        OPS.linear_panels(*WRONG[sentence](_x(2, 128), w))


WRONG_ELSEWHERE = {
    "x_codes must be int8": lambda c: OPS.scaled_linear(c.float(), *_scaled_tail()),
    "x_scale must have 1 or 2 elements, got 3": lambda c: OPS.scaled_linear(c, torch.ones(3, 1), *_scaled_tail()[1:]),
    "indices must be int64 or int32": lambda c: OPS.embedding(
        c, *_scaled_tail()[1:5], "int8", [1, 32], 32, torch.float32
    ),
    "indices must be between 0 and 15; element 1 is not": lambda c: OPS.embedding(
        torch.tensor([15, 16]), *_scaled_tail()[1:5], "int8", [1, 32], 32, torch.float32
    ),
    "x must be float32, bfloat16 or float16": lambda c: OPS.dynamic_quantize(c, "int8", torch.float32),
    "scale must have 16 elements, got 1": lambda c: OPS.quantize(
        torch.ones(16, 32), torch.ones(1), None, None, "int8", [1, 32]
    ),
    "takes uint8": lambda c: OPS.pack(c.float(), 4),
    "packed must have 16 bytes a row, got 32": lambda c: OPS.unpack(c.view(torch.uint8), 4, 32),
}


def _scaled_tail() -> tuple[object, ...]:
    w = sample("int8", (16, 32))
    return torch.ones(2, 1), *w.canonical, None, "int8", "int8", [1, 32], None, torch.float32


@pytest.mark.parametrize("sentence", WRONG_ELSEWHERE)
def test_wrong_arguments_of_other_operators_are_named(sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        WRONG_ELSEWHERE[sentence](torch.ones(2, 32, dtype=torch.int8))


@pytest.mark.parametrize("op", ["linear", "linear_integer"])
def test_no_features_no_rows_no_tokens(op: str, isa: str) -> None:
    for tokens, rows, size in ((3, 20, 0), (3, 0, 16), (0, 20, 16), (0, 0, 0)):
        codes, scale = torch.zeros(rows, size, dtype=torch.int8), torch.ones(rows, 1 if size else 0)
        bias = torch.arange(rows).float()
        y = getattr(OPS, op)(torch.ones(tokens, size), codes, scale, None, None, bias, "int8", [1, max(size, 1)])
        assert torch.equal(y, bias.expand(tokens, rows))


def _unaligned(t: Tensor | None) -> Tensor | None:
    """The same tensor one element into its memory, as slices of files and of activations lie."""
    if t is None:
        return None
    return torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)


@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "float8_e4m3fn"])
def test_tensors_that_are_not_aligned(qtype: str, isa: str) -> None:
    w = sample(qtype, (37, 192), 64, "int" if qtype in INTEGERS else "none", torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (1, 7, 20):
            x, bias = _x(tokens, 192).to(dtype), _x(1, 37, 2)[0]
            for suffix, tensors in (("", w.canonical), ("_panels", w.panels)):
                call = [x, *tensors, bias]
                moved = [_unaligned(t) for t in call]
                for op in (f"linear{suffix}", f"linear_integer{suffix}"):
                    rest = [qtype, list(w.blocks)]
                    assert torch.equal(getattr(OPS, op)(*moved, *rest), getattr(OPS, op)(*call, *rest))
