# SPDX-License-Identifier: Apache-2.0
"""Linear layers against float64, element by element: every format, ragged sizes, both precisions, both layouts."""

from __future__ import annotations

import pytest
import torch
from accuracy import EXACT, INTEGER, activations, expected, half_steps, roundings, worst
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from weights import SHAPES, sample

import quanto_backend_cpu
from quanto_backend_cpu.specs import EVERY, FLOAT8, INTEGERS, TABLES

OPS = torch.ops.quanto_cpu
TOKENS = (1, 2, 3, 5, 7, 9, 13, 29)


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
        bias = activations(1, shape[0], 2)[0] if index % 2 else None
        for tokens in TOKENS:
            x = activations(tokens, shape[1])
            layouts = [("_panels", w.panels)] if fixed else [("_panels", w.panels), ("", w.canonical)]
            for suffix, tensors in layouts:
                call = [x, *tensors, bias, qtype, list(w.blocks)]
                assert worst(getattr(OPS, f"linear{suffix}")(*call), x, w, bias) < EXACT, (shape, zero, tokens, suffix)
                y = getattr(OPS, f"linear_integer{suffix}")(*call)
                limit = EXACT if qtype in FLOAT8 else INTEGER
                assert worst(y, x, w, bias) < limit, (shape, zero, tokens, suffix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qtype", sorted(EVERY))
def test_half_precision(qtype: str, dtype: torch.dtype, isa: str) -> None:
    zero = "float" if qtype in INTEGERS else "none"
    for shape, group in (((80, 256), 128), ((33, 1100), None), ((18, 90), 37)):
        group = 32 if qtype in ("mxfp4", "mxfp8", "nvfp4") else group
        w = sample(qtype, shape, group, zero, scale_dtype=dtype)
        bias = activations(1, shape[0], 2)[0]
        for tokens in (1, 2, 3, 8, 17, 43):
            x = activations(tokens, shape[1]).to(dtype)
            y = OPS.linear_panels(x, *w.panels, bias, qtype, list(w.blocks))
            assert y.dtype == dtype
            want, unit = expected(x, w, bias)
            rounded = torch.finfo(dtype).eps / 2
            assert ((y.double() - want).abs() <= EXACT * unit + rounded * want.abs() * (1 + 1e-6)).all()


@pytest.mark.parametrize("qtype", ["int8", "int4", "float8_e5m2"])
def test_a_row_left_over_of_many(qtype: str, isa: str) -> None:
    """Rows are prepared in parts; of 631, whose features take a megabyte for 64, the last part has a single one."""
    w = sample(qtype, (16, 8192), 128)
    x = activations(631, 8192).to(torch.bfloat16)
    y = OPS.linear_panels(x, *w.panels, None, qtype, list(w.blocks))
    want, unit = expected(x[-2:], w, None)
    assert ((y[-2:].double() - want).abs() <= EXACT * unit + 2.0**-8 * want.abs()).all()


@given(st.integers(0, 70), st.integers(0, 150), st.integers(0, 40), st.integers(1, 160), st.sampled_from(sorted(EVERY)))
def test_any_shape(rows: int, size: int, tokens: int, group: int, qtype: str) -> None:
    if qtype in ("mxfp4", "mxfp8", "nvfp4"):
        group = 32
    w = sample(qtype, (rows, max(size, 1)), group)
    x = activations(tokens, max(size, 1))
    want, unit = expected(x, w, None)
    rounding = EXACT * unit + roundings(x, w)
    for isa in quanto_backend_cpu.instruction_sets():
        with quanto_backend_cpu.use(isa):
            y = OPS.linear_panels(x, *w.panels, None, qtype, list(w.blocks))
            assert ((y.double() - want).abs() <= rounding).all()
            if qtype in INTEGERS | TABLES:
                y = OPS.linear_integer_panels(x, *w.panels, None, qtype, list(w.blocks))
                assert ((y.double() - want).abs() <= half_steps(x, w) + rounding).all()
                # Errors of few products don't cancel; modules leave those to exact compute.
                assert size < 64 or worst(y, x, w, None) < INTEGER


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
        assert worst(y.reshape(-1, 33), x.reshape(-1, 128), w, None) < EXACT


def test_more_rows_than_are_prepared_at_once(isa: str) -> None:
    w = sample("int4", (20, 64), 32)
    x = activations(1100, 64)
    assert worst(OPS.linear_panels(x, *w.panels, None, "int4", list(w.blocks)), x, w, None) < EXACT
    assert worst(OPS.linear_integer_panels(x, *w.panels, None, "int4", list(w.blocks)), x, w, None) < INTEGER


@pytest.mark.parametrize("op", ["linear", "linear_integer"])
def test_no_features_no_rows_no_tokens(op: str, isa: str) -> None:
    for tokens, rows, size in ((3, 20, 0), (30, 20, 0), (3, 0, 16), (0, 20, 16), (0, 0, 0)):
        codes, scale = torch.zeros(rows, size, dtype=torch.int8), torch.ones(rows, 1 if size else 0)
        bias = torch.arange(rows).float()
        y = getattr(OPS, op)(torch.ones(tokens, size), codes, scale, None, None, bias, "int8", [1, max(size, 1)])
        assert torch.equal(y, bias.expand(tokens, rows))


@pytest.mark.parametrize("tokens", [1, 6, 30])
@pytest.mark.parametrize("qtype", ["int4", "fp4"])
def test_no_features_of_half_a_byte(qtype: str, tokens: int, isa: str) -> None:
    codes, bias = torch.zeros(20, 0, dtype=torch.uint8), torch.arange(20).float()
    for op in (OPS.linear, OPS.linear_integer):
        y = op(torch.ones(tokens, 0), codes, torch.ones(20, 0), None, None, bias, qtype, [1, 1])
        assert torch.equal(y, bias.expand(tokens, 20))


@pytest.mark.parametrize("group", [264, 320, 384])
@pytest.mark.parametrize("qtype", sorted(INTEGERS | {"nf4", "fp4"}))
def test_groups_longer_than_a_block_of_activations(qtype: str, group: int, isa: str) -> None:
    """The last block of a group, of what 256 activations leave, is shorter than the others."""
    w = sample(qtype, (20, 2 * group), group)
    for tokens in (1, 2, 4, 6, 8, 30):
        x = activations(tokens, 2 * group)
        tail = (*w.panels, None, qtype, list(w.blocks))
        assert worst(OPS.linear_panels(x, *tail), x, w, None) < EXACT
        assert worst(OPS.linear_integer_panels(x, *tail), x, w, None) < INTEGER
        codes, scale = (x * 20).round().clamp(-128, 127).to(torch.int8), torch.full((tokens, 1), 0.05)
        y = OPS.scaled_linear_panels(codes, scale, *w.panels, None, "int8", qtype, list(w.blocks), None, torch.float32)
        assert worst(y, codes.double() * 0.05, w, None) < EXACT


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
            x, bias = activations(tokens, 192).to(dtype), activations(1, 37, 2)[0]
            for suffix, tensors in (("", w.canonical), ("_panels", w.panels)):
                call = [x, *tensors, bias]
                moved = [_unaligned(t) for t in call]
                for op in (f"linear{suffix}", f"linear_integer{suffix}"):
                    rest = [qtype, list(w.blocks)]
                    assert torch.equal(getattr(OPS, op)(*moved, *rest), getattr(OPS, op)(*call, *rest))
