# SPDX-License-Identifier: Apache-2.0
"""What no kernel is made for: nothing to compute, tensors that lie elsewhere, numbers that are none, wrong types."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from weights import sample

from quanto import reference
from quanto_backend_cpu.specs import EVERY, INTEGERS

OPS = torch.ops.quanto_cpu
INT8_IN = ["int8", "int8", [1, 32]]


def _gapped(t: Tensor | None) -> Tensor | None:
    """The same numbers with others between them."""
    if t is None:
        return None
    wide = torch.stack([t, t.flip(0)], -1)
    assert not wide[..., 0].is_contiguous() or t.numel() < 2
    return wide[..., 0]


@pytest.mark.parametrize("qtype", ["int8", "int3", "nf4", "float8_e5m2"])
def test_no_tensor_has_to_be_contiguous(qtype: str, isa: str) -> None:
    w = sample(qtype, (37, 192), 64, "int" if qtype in INTEGERS else "none", torch.bfloat16)
    x, bias, tail = torch.randn(5, 192), torch.randn(37), [qtype, list(w.blocks)]
    codes, scale = torch.randint(-128, 128, (5, 192), dtype=torch.int8), torch.rand(5, 1)
    for suffix, tensors in (("", w.canonical), ("_panels", w.panels)):
        call: list[tuple[str, list[Any], list[Any]]] = [
            (f"linear{suffix}", [x, *tensors, bias], tail),
            (f"linear_integer{suffix}", [x, *tensors, bias], tail),
            (f"scaled_linear{suffix}", [codes, scale, *tensors, bias], ["int8", *tail, None, torch.float32]),
            (f"dequantize{suffix}", [*tensors], [*tail, 192, torch.float32]),
            (f"embedding{suffix}", [torch.tensor([[3, 36], [0, 3]]), *tensors], [*tail, 192, torch.float32]),
        ]
        for name, given, rest in call:
            got = getattr(OPS, name)(*(_gapped(t) for t in given), *rest)
            assert torch.equal(got, getattr(OPS, name)(*given, *rest)), name
    every = OPS.quantize(_gapped(w.values.float()), *(_gapped(t) for t in w.canonical[1:]), *tail)
    assert torch.equal(
        every.view(torch.uint8), OPS.quantize(w.values.float(), *w.canonical[1:], *tail).view(torch.uint8)
    )
    for got, want in zip(OPS.dynamic_quantize(_gapped(x), "int8", torch.float32),
                         OPS.dynamic_quantize(x, "int8", torch.float32), strict=True):  # fmt: skip
        assert torch.equal(got, want)


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


@pytest.mark.parametrize(("tokens", "rows", "size"), [(3, 20, 0), (3, 0, 16), (0, 20, 16), (0, 0, 0)])
def test_nothing_to_compute(tokens: int, rows: int, size: int, isa: str) -> None:
    block = [1, max(size, 1)]
    codes, scale, bias = (
        torch.zeros(rows, size, dtype=torch.int8),
        torch.ones(rows, min(size, 1)),
        torch.arange(rows).float(),
    )
    weight = (codes, scale, None, None)
    x, x_scale = torch.ones(tokens, size, dtype=torch.int8), torch.ones(tokens, 1)
    y = OPS.scaled_linear(x, x_scale, *weight, bias, "int8", "int8", block, None, torch.float32)
    assert torch.equal(y, bias.expand(tokens, rows))
    none = torch.zeros(0, 2, dtype=torch.int64)
    assert OPS.embedding(none, *weight, "int8", block, size, torch.bfloat16).shape == (0, 2, size)
    q, s = OPS.dynamic_quantize(x.float(), "int8", torch.float32)
    want = reference.dynamic_quantize(x.float(), "int8", torch.float32)
    assert torch.equal(q, want[0])
    assert torch.equal(s, want[1])
    assert OPS.quantize(torch.ones(rows, size), scale, None, None, "int8", block).shape == (rows, size)
    assert OPS.unpack(OPS.pack(x.view(torch.uint8), 3), 3, size).shape == (tokens, size)


WRONG: dict[str, Callable[[], Any]] = {
    "codes must be bytes": lambda: _linear(codes=lambda t: t.float()),
    "codes must have two dimensions, got 1": lambda: _linear(codes=lambda t: t[0]),
    "codes must have 128 bytes a row for 128 features of int8, got 127": lambda: _linear(codes=lambda t: t[:, 1:]),
    "scale must be float32, bfloat16 or float16": lambda: _linear(scale=lambda t: t.to(torch.int8)),
    "zero_point must have 33 elements, got 1": lambda: _linear(zero=torch.zeros(1, 1, dtype=torch.int8)),
    "zero_point must be float32, bfloat16, float16 or int8": lambda: _linear(zero=torch.zeros(33, 1).double()),
    "global_scale must be one float32": lambda: _linear(shared=torch.ones(2)),
    "bias must be float32, bfloat16 or float16": lambda: _linear(bias=torch.zeros(33, dtype=torch.int8)),
    "x must have at least one dimension": lambda: _linear(x=torch.tensor(1.0)),
    "x_scale must be float32, bfloat16 or float16": lambda: _scaled(scale=torch.ones(2, 1, dtype=torch.int8)),
    "out_scale must be float32, bfloat16 or float16": lambda: _scaled(out_scale=torch.ones(1, dtype=torch.int8)),
    "out_scale must have one element, got 2": lambda: _scaled(out_scale=torch.ones(2)),
    "x_codes must have at least one dimension": lambda: _scaled(x=torch.tensor(1, dtype=torch.int8)),
    "x must have two dimensions, got 1": lambda: OPS.quantize(
        torch.ones(32), torch.ones(1), None, None, "int8", [1, 32]
    ),
    "x_codes given, dtype must be float32, bfloat16 or float16": lambda: _scaled(dtype=torch.int8),
    "codes given, dtype must be float32, bfloat16 or float16": lambda: OPS.dequantize_panels(
        *sample("int8", (16, 32)).panels, "int8", [1, 32], 32, torch.int8
    ),
    "indices given, dtype must be float32, bfloat16 or float16": lambda: OPS.embedding_panels(
        torch.tensor([1]), *sample("int8", (16, 32)).panels, "int8", [1, 32], 32, torch.int8
    ),
    "scale given, global_scale must be one float32": lambda: OPS.quantize(
        torch.ones(16, 32), torch.ones(16, 1), None, torch.ones(0), "int8", [1, 32]
    ),
    "zero_point must have 16 elements": lambda: OPS.quantize(
        torch.ones(16, 32), torch.ones(16, 1), torch.zeros(1), None, "int8", [1, 32]
    ),
}


def _linear(
    x: Tensor | None = None,
    codes: Callable[[Tensor], Tensor] = lambda t: t,
    scale: Callable[[Tensor], Tensor] = lambda t: t,
    zero: Tensor | None = None,
    shared: Tensor | None = None,
    bias: Tensor | None = None,
) -> Any:
    w = sample("int8", (33, 128))
    x = torch.ones(2, 128) if x is None else x
    for suffix, (c, s, *_) in (("", w.canonical), ("_panels", w.panels)):
        for name in (f"linear{suffix}", f"linear_integer{suffix}"):
            with pytest.raises(RuntimeError) as caught:
                getattr(OPS, name)(x, codes(c), scale(s), zero, shared, bias, "int8", [1, 128])
    raise caught.value


def _scaled(
    x: Tensor | None = None,
    scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    w = sample("int8", (16, 32))
    x = torch.ones(2, 32, dtype=torch.int8) if x is None else x
    scale = torch.ones(2, 1) if scale is None else scale
    return OPS.scaled_linear_panels(x, scale, *w.panels, None, *INT8_IN, out_scale, dtype)


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_arguments_are_named(sentence: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(sentence.rpartition(" given, ")[2])):
        WRONG[sentence]()
