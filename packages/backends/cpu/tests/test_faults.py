# SPDX-License-Identifier: Apache-2.0
"""What no kernel is made for: nothing to compute, tensors with gaps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from weights import sample

from quanto import reference
from quanto_backend_cpu.specs import INTEGERS

OPS = torch.ops.quanto_cpu


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


@pytest.mark.parametrize(("tokens", "rows", "size"), [(3, 20, 0), (30, 20, 0), (3, 0, 16), (0, 20, 16), (0, 0, 0)])
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
