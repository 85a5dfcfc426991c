# SPDX-License-Identifier: Apache-2.0
"""The shim finds what it is there to find: shaders and calls that are wrong in each of the ways that matter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from metal_shim import Shim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim is made for Linux and g++")

SOURCE = """
#include <metal_stdlib>
using namespace metal;
#ifndef SHARED
#define SHARED(T, name, count) threadgroup T name[count]
#endif
struct Sizes {
    int count, x_type;
};
#define KERNEL(NAME, BODY)                                                                                     \\
    kernel void NAME(device const uchar* x [[buffer(0)]], device float* out [[buffer(1)]],                     \\
                     constant Sizes& p [[buffer(2)]], uint index [[thread_index_in_threadgroup]],              \\
                     uint3 group [[threadgroup_position_in_grid]]) {                                           \\
        device const float* v = (device const float*)x;                                                        \\
        BODY                                                                                                   \\
    }

KERNEL(sum, out[group.x * 64 + index] = simd_sum(v[group.x * 64 + index]);)
KERNEL(reversed, SHARED(float, all, 64); all[index] = v[index]; threadgroup_barrier(mem_flags::mem_threadgroup);
       out[index] = all[63 - index];)
KERNEL(unguarded, SHARED(float, all, 64); all[index] = v[index]; out[index] = all[63 - index];)
KERNEL(divergent, if (index % 2) { out[index] = simd_sum(v[index]); } else { out[index] = simd_max(v[index]); })
KERNEL(leaves, if (index == 5) { return; } threadgroup_barrier(mem_flags::mem_threadgroup); out[index] = 1.0f;)
kernel void flush(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                  uint3 position [[thread_position_in_grid]]) {
    out[position.x] = x[position.x] * 0.5f;
}
"""
CAST = {2: "int32"}


@pytest.fixture(scope="module")
def shim(request: pytest.FixtureRequest) -> Shim:
    return Shim(Path(request.config.cache.mkdir("metal-shim")))


@pytest.fixture(scope="module")
def library(shim: Shim):
    return shim.compile_shader(SOURCE)


def call(kernel, x: torch.Tensor, out: torch.Tensor, sizes=(64, 0), threads=(64,), group=(64,), casts=CAST) -> None:
    kernel(x, out, list(sizes), threads=list(threads), group_size=list(group), arg_casts=casts)


def test_simdgroups_and_threadgroup_memory(library) -> None:
    x, out = torch.randn(128), torch.empty(128)
    call(library.sum, x, out, threads=(128,))
    assert torch.allclose(out.view(4, 32), x.view(4, 32).sum(1, keepdim=True).expand(4, 32), atol=1e-5)
    call(library.reversed, x, out)
    assert torch.equal(out[:64], x[:64].flip(0))


def test_views_are_bound_at_their_offset(library) -> None:
    x, out = torch.randn(65), torch.empty(64)
    call(library.reversed, x[1:], out)
    assert torch.equal(out, x[1:].flip(0))


def test_a_missing_barrier_shows(library) -> None:
    x, out = torch.randn(64), torch.empty(64)
    call(library.unguarded, x, out)
    assert not torch.equal(out, x.flip(0))


def test_divergence_is_an_error(library) -> None:
    with pytest.raises(RuntimeError, match="different operations"):
        call(library.divergent, torch.randn(64), torch.empty(64))
    with pytest.raises(RuntimeError, match="have returned"):
        call(library.leaves, torch.randn(64), torch.empty(64))


def test_subnormals_are_flushed(library) -> None:
    x, out = torch.tensor([1.5e-38, 1.0]), torch.empty(2)
    library.flush(x, out, threads=[2], group_size=[2])
    assert out.tolist() == [0.0, 0.5]


WRONG = {
    "other dtype": lambda k: call(k, torch.randn(64).half(), torch.empty(64)),
    "other type code": lambda k: call(k, torch.randn(64), torch.empty(64), sizes=(64, 1)),
    "strides": lambda k: call(k, torch.randn(128)[::2], torch.empty(64)),
    "empty": lambda k: call(k, torch.randn(0), torch.empty(64)),
    "int64": lambda k: call(k, torch.randn(64), torch.empty(64), casts=None),
    "too few sizes": lambda k: call(k, torch.randn(64), torch.empty(64), sizes=(64,)),
    "too large a size": lambda k: call(k, torch.randn(64), torch.empty(64), sizes=(1 << 31, 0)),
    "order": lambda k: k(torch.randn(64), [64, 0], torch.empty(64), threads=[64], group_size=[64], arg_casts=CAST),
    "None": lambda k: k(None, torch.empty(64), [64, 0], threads=[64], group_size=[64], arg_casts=CAST),
    "too few arguments": lambda k: k(torch.randn(64), torch.empty(64), threads=[64], group_size=[64]),
    "half a group": lambda k: call(k, torch.randn(64), torch.empty(64), threads=(96,)),
    "too large a group": lambda k: call(k, torch.randn(64), torch.empty(64), threads=(2048,), group=(2048,)),
    "no threads": lambda k: call(k, torch.randn(64), torch.empty(64), threads=(0,)),
    "dimensions": lambda k: call(k, torch.randn(64), torch.empty(64), threads=(64, 1)),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_wrong_calls_are_refused(library, what: str) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        WRONG[what](library.sum)


def test_wrong_shaders_do_not_compile(shim: Shim) -> None:
    with pytest.raises(SyntaxError):
        shim.compile_shader("#include <metal_stdlib>\nusing namespace metal;\nuint f() { return nothing; }")
    with pytest.raises(ValueError, match="must be 0, 1"):
        shim.compile_shader("kernel void f(device float* x [[buffer(1)]]) { }")
