# SPDX-License-Identifier: Apache-2.0
"""Every access of the shaders, looked at by the checked build of the shim: how much is read, where, and in what order.

The build itself fails a launch in which a thread reads or writes beside a buffer, or two threads meet in threadgroup
memory without a barrier; see `metal_shim/checked.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from metal_shim import Shim

from quanto.kernels import Request
from quanto.kernels.problems import arguments, random_weight
from quanto.qtypes import get_qtype
from quanto_backend_mps import library
from quanto_backend_mps.specs import specs
from quanto_backend_mps.weights import KINDS

pytestmark = pytest.mark.skipif(torch.backends.mps.is_available(), reason="counts what the shim runs")
OPERATORS = {spec.op: spec.fn for spec in specs()}
SHAPES = ((33, 160), (70, 129), (7, 72))


@pytest.fixture(scope="module")
def shim(request: pytest.FixtureRequest) -> Iterator[Shim]:
    """A second, checked build of every shader in place of the first."""
    shim = Shim(Path(request.config.cache.mkdir("metal-shim")), checked=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.mps, "compile_shader", shim.compile_shader)
        patch.setattr(library, "_compiled", {})
        yield shim


def run(request: Request, tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    given, _ = arguments(request, random_weight(request, generator), tokens, generator)
    OPERATORS[request.op](*given)


def blocks(group: int, size: int) -> tuple[int, int]:
    return (1, min(group, size))


@pytest.mark.parametrize("tokens", [1, 4, 16])
@pytest.mark.parametrize("group", [32, 2048])
@pytest.mark.parametrize("qtype", sorted(KINDS))
def test_a_gemv_moves_the_weight_once(shim: Shim, qtype: str, group: int, tokens: int) -> None:
    """Within 5 % of the floor: codes, scales and zero points, each byte once, whatever the number of tokens."""
    zero = "int" if get_qtype(qtype).is_integer else "none"
    request = Request("linear", "cpu", torch.float16, qtype, blocks(group, 2048), (8, 2048), torch.float16, zero)
    run(request, tokens)
    assert shim.launched[-1].startswith(f"gemv{tokens}_")
    assert shim.last is not None
    codes = 8 * 2048 * get_qtype(qtype).bits // 8
    scales = 8 * (2048 // group) * (2 if zero == "none" else 3)
    assert shim.last.read[1] == codes
    moved = sum(shim.last.moved[1:4]) if zero == "int" else shim.last.moved[1] + shim.last.moved[2]
    assert codes + scales <= moved <= 1.05 * (codes + scales)
    assert shim.last.written[6] == 8 * tokens * 2


@pytest.mark.parametrize("tokens", [1, 16, 40])
@pytest.mark.parametrize("group", [20, 32])
@pytest.mark.parametrize("qtype", sorted(KINDS))
def test_products_stay_within_their_buffers(shim: Shim, qtype: str, group: int, tokens: int) -> None:
    shape = SHAPES[0] if group == 32 else SHAPES[tokens % 3]
    run(Request("linear", "cpu", torch.float32, qtype, blocks(group, shape[1]), shape), tokens)
    assert shim.last is not None
    assert shim.last.written == (0, 0, 0, 0, 0, 0, shape[0] * tokens * 4, 0), "each result is written once"


@pytest.mark.parametrize("tokens", [2, 40])
@pytest.mark.parametrize("qtype", ["int8", "int4"])
def test_products_of_codes_stay_within_their_buffers(shim: Shim, qtype: str, tokens: int) -> None:
    request = Request("scaled_linear", "cpu", torch.bfloat16, qtype, (1, 32), (33, 160), activations="int8")
    run(request, tokens)
    assert shim.last is not None
    assert shim.last.written[6] == 33 * tokens * 2


@pytest.mark.parametrize("op", ["dequantize", "embedding", "quantize"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("qtype", sorted(KINDS))
def test_rows_stay_within_their_buffers(shim: Shim, qtype: str, shape: tuple[int, int], op: str) -> None:
    run(Request(op, "cpu", torch.float16, qtype, blocks(20, shape[1]), shape), 5)
    assert shim.last is not None
    rows = 5 if op == "embedding" else shape[0]
    row = -(-shape[1] * get_qtype(qtype).bits // 8) if op == "quantize" else shape[1] * 2
    assert sum(shim.last.written) == rows * row


CALLS: dict[str, tuple[Callable[[], object], int]] = {
    "pack": (lambda: OPERATORS["pack"](torch.full((3, 13), 5, dtype=torch.uint8), 3), 3 * 5),
    "unpack": (lambda: OPERATORS["unpack"](torch.full((3, 5), 99, dtype=torch.uint8), 3, 13), 3 * 13),
    "dynamic": (lambda: OPERATORS["dynamic_quantize"](torch.randn(3, 700), "int8", torch.float32), 3 * (700 + 4)),
    "dynamic short": (lambda: OPERATORS["dynamic_quantize"](torch.randn(2, 1), "int8", torch.float32), 2 * (1 + 4)),
}


@pytest.mark.parametrize("what", sorted(CALLS))
def test_the_rest_stays_within_its_buffers(shim: Shim, what: str) -> None:
    call, written = CALLS[what]
    call()
    assert shim.last is not None
    assert sum(shim.last.written) == written


BROKEN = """
#include <metal_stdlib>
using namespace metal;
#ifndef SHARED
#define SHARED(T, name, count) threadgroup T name[count]
#endif
kernel void beyond(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                   uint3 position [[thread_position_in_grid]]) {
    out[position.x] = x[position.x + 1];
}
kernel void unordered(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                      uint index [[thread_index_in_threadgroup]]) {
    SHARED(float, all, 64);
    all[index] = x[index];
    simd_sum(1.0f);
    out[index] = all[index ^ 32];
}
"""


@pytest.mark.parametrize(("kernel", "words"), [("beyond", "beside a buffer"), ("unordered", "without a barrier")])
def test_the_check_finds(shim: Shim, kernel: str, words: str) -> None:
    call = getattr(shim.compile_shader(BROKEN), kernel)
    with pytest.raises(RuntimeError, match=words):
        call(torch.randn(64), torch.empty(64), threads=[64], group_size=[64])
