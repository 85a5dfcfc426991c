# SPDX-License-Identifier: Apache-2.0
"""Candidates are tiles that the kernels take."""

from __future__ import annotations

import math

import pytest

from quanto_backend_cuda.ops import product, stream
from quanto_backend_cuda.ops.linear import FUSED_TOKENS
from quanto_backend_cuda.tune.candidates import candidates
from quanto_backend_cuda.tune.problem import Problem


@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 16, 33, 128, 256, 1000, 4096])
@pytest.mark.parametrize(
    ("kernel", "qtype", "group"),
    [
        ("linear", "int4", 128),
        ("linear", "int8", 0),
        ("stream", "int4", 128),
        ("stream", "int8", 0),
        ("scaled", "int8", 0),
        ("product", "int8", 0),
        ("scaled", "int4", 0),
    ],
)
def test_are_tiles_of_the_kernel(kernel: str, qtype: str, group: int, tokens: int) -> None:
    found = candidates(Problem(kernel, qtype, group, tokens, 4096, 4096))
    assert len(found) == len(set(found))
    if kernel == "stream" and tokens > stream.TOKENS:
        assert not found, "other kernels multiply there"
        return
    if kernel == "product" and tokens < product.TOKENS:
        assert not found, "another kernel multiplies there"
        return
    if kernel == "linear" and tokens > FUSED_TOKENS:
        assert not found, "cuBLAS multiplies there"
        return
    assert 3 <= len(found) <= 96
    for tile in found:
        sizes = (tile.bn, tile.bm, tile.warps, tile.bk, tile.kw or 1, tile.ahead or 1)
        assert all(math.log2(size).is_integer() for size in sizes), tile
        fewest = 8 if kernel == "stream" else 16
        assert tile.kw == 0 or tile.kw * tile.bm >= fewest, f"{tile}: tensor cores take no fewer columns"
        assert tile.kw > 0 or (kernel == "scaled" and qtype != "int4")
