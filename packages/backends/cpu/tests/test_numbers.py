# SPDX-License-Identifier: Apache-2.0
"""Numbers that are none, too small or too large: in activations, in scales, in codes."""

from __future__ import annotations

import pytest
import torch
from accuracy import activations
from weights import sample

from quanto.kernels import kernels
from quanto_backend_cpu.specs import EVERY

OPS = torch.ops.quanto_cpu


@pytest.mark.parametrize("tokens", [1, 3, 30])
@pytest.mark.parametrize("qtype", sorted(EVERY))
def test_activations_that_are_no_numbers_stay_in_their_row(qtype: str, tokens: int, isa: str) -> None:
    """As through the reference: NaN and infinity where it has them, in both precisions; so do scales of int8."""
    w = sample(qtype, (20, 128), 32)
    tail = [qtype, list(w.blocks)]
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = torch.randn(tokens, 128, generator=torch.Generator().manual_seed(1))
        x[tokens // 2, 77] = bad
        want = x.double() @ w.values.T
        for op in (OPS.linear_panels, OPS.linear_integer_panels):
            y = op(x, *w.panels, None, *tail)
            assert torch.equal(y.isnan(), want.isnan())
            assert torch.equal(y.isinf(), want.isinf())
            assert torch.equal(y[y.isinf()] > 0, want[want.isinf()] > 0)
        codes = torch.ones(tokens, 128, dtype=torch.int8)
        scale = torch.ones(tokens, 1)
        scale[tokens // 2] = bad
        y = OPS.scaled_linear_panels(codes, scale, *w.panels, None, "int8", *tail, None, torch.float32)
        assert not y[tokens // 2].isfinite().any()
        assert y[torch.arange(tokens) != tokens // 2].isfinite().all()


@pytest.mark.parametrize("tokens", [1, 3, 30])
@pytest.mark.parametrize("qtype", ["int8", "int4", "nf4"])
def test_large_activations_beside_small_scales(qtype: str, tokens: int, isa: str) -> None:
    """Sums that lack the scale of a feature may be no floats where results are."""
    w = sample(qtype, (37, 512))
    x, large, small = activations(tokens, 512), 2.0**113, 2.0**-70
    codes = (x * 30).round().clamp(-128, 127).to(torch.int8)
    scale = torch.full((tokens, 1), 0.5)
    tail = [qtype, list(w.blocks)]
    calls = [
        lambda factor: OPS.linear_panels(x * factor, *w.panels, None, *tail),
        lambda factor: OPS.linear_integer_panels(x * factor, *w.panels, None, *tail),
        lambda factor: OPS.scaled_linear_panels(
            codes, scale * factor, *w.panels, None, "int8", *tail, None, torch.float32
        ),
    ]
    usual = [call(1.0) for call in calls]
    w.panels[1].mul_(small)
    for call, want in zip(calls, usual, strict=True):
        torch.testing.assert_close(call(large) * 2.0**-43, want, rtol=0.05, atol=0.05 * want.std().item())


@pytest.mark.parametrize("tokens", [1, 3, 30])
def test_nan_and_infinity_stay_in_their_row(tokens: int, isa: str) -> None:
    w = sample("int4", (33, 256), 128)
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = activations(tokens, 256)
        x[tokens // 2, 77] = bad
        want = x.double() @ w.values.T
        for op, rows in (
            (OPS.linear_panels, x),
            (OPS.linear_integer_panels, x),
            (OPS.linear_panels, x.bfloat16()),
        ):
            y = op(rows, *w.panels, None, "int4", list(w.blocks))
            assert torch.equal(y.isnan(), want.isnan())
            assert torch.equal(y.isinf(), want.isinf())
            fine = want.isfinite()
            torch.testing.assert_close(y[fine].double(), want[fine], atol=0.2, rtol=0.04)


def test_a_scale_that_is_no_number_stays_in_its_row_of_the_weight(isa: str) -> None:
    for suffix in ("", "_panels"):
        w = sample("int4", (37, 128), 32)
        codes, scale, *rest = w.canonical
        scale = scale.clone()
        scale[5, 1] = scale[36, 3] = float("nan")
        if suffix:
            codes, scale, _ = OPS.pack_panels(codes, scale, None, "int4", list(w.blocks), 128)
        bad = torch.isin(torch.arange(37), torch.tensor([5, 36]))
        for tokens in (1, 20):
            for op in (f"linear{suffix}", f"linear_integer{suffix}"):
                y = getattr(OPS, op)(torch.randn(tokens, 128), codes, scale, *rest, None, "int4", list(w.blocks))
                assert torch.equal(y.isnan(), bad.expand(tokens, 37)), op


def test_nan_codes_of_float8(isa: str) -> None:
    w = sample("float8_e4m3fn", (20, 64))
    codes = w.canonical[0].clone()
    codes[3, 5], codes[18, 0] = 0x7F, 0xFF
    panels = kernels.layouts["cpu.panels"].pack((codes, *w.canonical[1:]), "float8_e4m3fn", w.blocks, 64)
    for tokens in (1, 20):
        y = OPS.linear_panels(activations(tokens, 64), *panels, None, "float8_e4m3fn", list(w.blocks))
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
    codes = (torch.arange(16 * 32, dtype=torch.int32) % 8).to(torch.uint8).view(16, 32)  # all below 2**-6
    want = torch.ones(1, 32) @ codes.view(torch.float8_e4m3fn).float().T
    torch.set_flush_denormal(True)
    try:
        y = OPS.linear(torch.ones(1, 32), codes, torch.ones(16, 1), None, None, None, "float8_e4m3fn", [1, 32])
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(y, want, rtol=1e-6, atol=0)
