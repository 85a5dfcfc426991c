# SPDX-License-Identifier: Apache-2.0
"""The tiled layout: bit for bit back, and where each code lies."""

from __future__ import annotations

import pytest
import torch

from quanto import packing
from quanto.kernels import Request
from quanto.kernels.problems import random_weight
from quanto.qtypes import get_qtype
from quanto_backend_cuda import layout
from quanto_backend_cuda.ops.weights import KINDS

SHAPES = ((16, 128), (48, 576), (32, 1280), (16, 1184))


def request_of(qtype: str, rows: int, size: int, group: int | None = None) -> Request:
    q = get_qtype(qtype)
    group = q.block or group or size
    zero = "int" if q.is_integer else "none"
    scale = q.scale_dtype or torch.bfloat16
    return Request("linear", "cpu", torch.bfloat16, qtype, (1, group), (rows, size), scale, zero)


def equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (a, b)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("qtype", sorted(KINDS))
def test_goes_back_bit_for_bit(qtype: str, shape: tuple[int, int]) -> None:
    request = request_of(qtype, *shape, group=32)
    assert layout.refuse(request) is None
    weight = random_weight(request, torch.Generator().manual_seed(0))
    there = layout.TILED.pack(weight, qtype, request.block_size, shape[1])
    back = layout.TILED.unpack(there, qtype, request.block_size, shape[1])
    assert all(equal(a, b) for a, b in zip(back, weight, strict=True))


@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "int2", "nf4"])
def test_takes_no_more_memory_than_the_codes(qtype: str) -> None:
    request = request_of(qtype, 32, 1280)
    weight = random_weight(request, torch.Generator().manual_seed(0))
    there = layout.TILED.pack(weight, qtype, request.block_size, 1280)
    assert there[0].numel() == weight[0].numel()


def test_words_hold_what_the_decoder_expects() -> None:
    """Column 32 t + 8 p + 2 q + e of int4 is nibble p + 4 e of word t of lane q."""
    column = torch.arange(128)
    for bit in range(7):
        codes = (column >> bit & 1).to(torch.uint8).expand(16, 128)
        weight = (packing.pack(codes.contiguous(), 4), torch.ones(16, 1), None, None)
        words = layout.TILED.pack(weight, "int4", (1, 128), 128)[0].view(torch.int32).view(16, 4, 4)
        for q, t, p, e in ((0, 0, 0, 0), (3, 2, 1, 1), (1, 3, 3, 0), (2, 1, 2, 1)):
            nibble = words[5, q, t] >> 4 * (p + 4 * e) & 15
            assert int(nibble) == (32 * t + 8 * p + 2 * q + e) >> bit & 1


@pytest.mark.parametrize(
    ("qtype", "shape", "words"),
    [
        ("int8", (15, 128), "multiple of 16"),
        ("int4", (16, 129), "whole bytes"),
        ("int8", (16, 40), "pad"),
        ("int8", (2, 16, 128), "two dimensions"),
    ],
)
def test_says_why_not(qtype: str, shape: tuple[int, ...], words: str) -> None:
    request = Request("linear", "cpu", torch.bfloat16, qtype, (1,) * (len(shape) - 1) + (shape[-1],), shape)
    assert words in str(layout.refuse(request))
