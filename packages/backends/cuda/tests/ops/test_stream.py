# SPDX-License-Identifier: Apache-2.0
"""The kernel for few tokens: what it takes, and when a weight is read behind an ordinary kernel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda.ops import stream
from quanto_backend_cuda.ops.weights import facts
from quanto_backend_cuda.tables import Tile


@pytest.mark.parametrize(
    ("qtype", "options", "size", "taken"),
    [
        ("int4", {"symmetric": True}, 512, True),
        ("int4", {"symmetric": False}, 512, True),
        ("nf4", {}, 512, True),
        ("int8", {}, 512, True),
        ("int8", {}, 320, False),  # whole stretches of 128 columns
        ("int4", {"group_size": 32}, 512, False),
        ("int3", {}, 512, True),
        ("int2", {"symmetric": False}, 512, True),
        ("mxfp4", {}, 512, False),
        ("int8", {"symmetric": False}, 512, False),
    ],
)
def test_takes(qtype: str, options: dict[str, Any], size: int, taken: bool) -> None:
    w = quanto.quantize_tensor(torch.randn(16, size, dtype=torch.bfloat16), qtype, **options)
    f = facts(qtype, list(w.block_size), size)
    assert stream.takes(f, size, torch.bfloat16, w.zero_point, w.scale) is taken
    assert not stream.takes(f, size, torch.float32, w.zero_point, w.scale)


def test_weights_are_settled_once_for_each_version() -> None:
    codes, out = torch.zeros(16, 64, dtype=torch.uint8), torch.ones(1, 16)

    def settled() -> bool:
        out.fill_(1)
        stream.settle(codes, out)
        return bool((out == 0).all())

    assert settled()
    assert not settled()
    codes += 1
    assert settled()
    assert not settled()
    codes = codes.clone()
    assert settled(), "another tensor"


def test_every_split_has_work() -> None:
    for chunks in (1, 9, 32, 112, 224):
        for tile in (Tile(8, 1, 8), Tile(64, 16, blocks=528), Tile(128, 16, blocks=264)):
            splits = tile.splits(1, 4096, chunks)
            each = math.ceil(math.ceil(chunks / tile.kw) / splits) * tile.kw
            assert (splits - 1) * each < chunks <= splits * each
