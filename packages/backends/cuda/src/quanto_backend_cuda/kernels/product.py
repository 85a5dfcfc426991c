# SPDX-License-Identifier: Apache-2.0
"""Products of quantized activations and weights for many tokens on Hopper, in Gluon: int8 x int8, float8 x float8.

`out = x @ W.T`. One warp fills a ring of tiles of both operands by TMA; two warpgroups, each with half the tokens of a
tile, multiply from it and never wait for anything else. The tiles of the weight are asked for as the kernel begins,
which by dependent launch is while the quantizer before it still runs; those of x after it has ended.

Blocks of threads stay: while one writes a tile of the result, the ring fills with the next. What is left when tiles do
not fill the GPU once more is cut along the input dimension, see `quanto_backend_cuda.kernels.pieces`.

Bound: the tensor cores; below about 512 tokens the way from the L2, 1 byte for 85 products in tiles of 128 x 256.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .addresses import scale_value
from .dependent import launch_dependents, wait_for_kernel_ahead
from .epilogue import through
from .pieces import after, gathered, piece, pieces, place

__all__ = ["product"]

# Newer versions of Triton have other names.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def _loader(x, w, xs, ws, full, empty, TM, TN, C, whole, rest, sharers, STRIPE: gl.constexpr):
    STAGES: gl.constexpr = ws.shape[0]
    BN: gl.constexpr = ws.shape[1]
    HALF: gl.constexpr = xs.shape[1]
    BYTES: gl.constexpr = (BN + 2 * HALF) * 128
    tile, begin, end = piece(0, whole, rest, sharers, C)
    pm, pn = place(tile, TM, TN, STRIPE)
    ahead = gl.minimum(STAGES, end - begin)
    for s in range(ahead):
        mbarrier.expect(full.index(s), BYTES)
        _load(w, [pn * BN, (begin + s) * 128], full.index(s), ws.index(s))
    wait_for_kernel_ahead()
    launch_dependents()
    for s in range(ahead):
        _load(x, [pm * 2 * HALF, (begin + s) * 128], full.index(s), xs.index(2 * s))
        _load(x, [pm * 2 * HALF + HALF, (begin + s) * 128], full.index(s), xs.index(2 * s + 1))
    stage = gl.where(ahead == STAGES, 0, ahead)
    phase = gl.where(ahead == STAGES, 0, 1)
    begin += ahead
    for j in range(pieces(whole, rest, sharers, C)):
        if j > 0:
            tile, begin, end = piece(j, whole, rest, sharers, C)
            pm, pn = place(tile, TM, TN, STRIPE)
        for c in range(begin, end):
            mbarrier.wait(empty.index(stage), phase)
            mbarrier.expect(full.index(stage), BYTES)
            _load(w, [pn * BN, c * 128], full.index(stage), ws.index(stage))
            _load(x, [pm * 2 * HALF, c * 128], full.index(stage), xs.index(2 * stage))
            _load(x, [pm * 2 * HALF + HALF, c * 128], full.index(stage), xs.index(2 * stage + 1))
            stage, phase = after(stage, phase, STAGES)


@gluon.jit
def _cut(acc):
    """The left and the right half of the columns."""
    HALF: gl.constexpr = acc.shape[1] // 2
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 32])
    left, right = acc.reshape((acc.shape[0], 2, HALF)).permute((0, 2, 1)).split()
    return gl.convert_layout(left, LAYOUT, assert_trivial=True), gl.convert_layout(right, LAYOUT, assert_trivial=True)


@gluon.jit
def _finish(acc, unit, scale, bias, out, y, m, n, N, THEN: gl.constexpr):
    """Scales, adds the bias, and writes sums [tokens, rows] through shared memory."""
    columns = n + gl.arange(0, acc.shape[1], gl.SliceLayout(0, acc.type.layout))
    columns = gl.minimum(columns, N - 1)
    value = acc.to(gl.float32) * unit[:, None] * scale_value(gl.load(scale + columns), "")[None, :]
    if bias is not None:
        value = value + gl.load(bias + columns).to(gl.float32)[None, :]
    value = through(value, THEN)
    tma.store_wait(0)
    y.store(value.to(y.dtype))
    fence_async_shared()
    _store(out, [m, n], y)


@gluon.jit
def _multiplier(
    x_scale,
    scale,
    bias,
    out,
    partial,
    locks,
    ys,
    xs,
    ws,
    full,
    empty,
    M,
    N,
    TM,
    TN,
    C,
    whole,
    rest,
    sharers,
    side: gl.constexpr,
    STRIPE: gl.constexpr,
    THEN: gl.constexpr,
):
    STAGES: gl.constexpr = ws.shape[0]
    BN: gl.constexpr = ws.shape[1]
    ROWS: gl.constexpr = xs.shape[1]
    INTEGERS: gl.constexpr = gl.int8 == xs.dtype
    # Triton knows no instruction for 256 columns of integers.
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128 if INTEGERS and BN > 128 else BN, 32])
    SUM: gl.constexpr = gl.int32 if INTEGERS else gl.float32
    PARTS: gl.constexpr = BN // ys.shape[2]
    r = gl.arange(0, ROWS, gl.SliceLayout(1, MMA))
    stage = gl.program_id(0) * 0
    phase = stage
    for j in range(pieces(whole, rest, sharers, C)):
        tile, begin, end = piece(j, whole, rest, sharers, C)
        gl.assume(end > begin)
        pm, pn = place(tile, TM, TN, STRIPE)
        acc = gl.zeros([ROWS, BN], SUM, MMA)
        for c in range(begin, end):
            mbarrier.wait(full.index(stage), phase)
            token = warpgroup_mma(xs.index(2 * stage + side), ws.index(stage).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[token])
            before = gl.where(stage == 0, STAGES - 1, stage - 1)
            mbarrier.arrive(empty.index(before), pred=c > begin)
            stage, phase = after(stage, phase, STAGES)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index(gl.where(stage == 0, STAGES - 1, stage - 1)))
        acc, last = gathered(acc, partial, locks, tile, begin, end, C, whole, rest, sharers, side)
        if last:
            m = (pm * 2 + side) * ROWS
            n = pn * BN
            unit = gl.load(x_scale + gl.minimum(m + r, M - 1))
            y = ys.index(side)
            if PARTS == 1:
                _finish(acc, unit, scale, bias, out, y, m, n, N, THEN)
            else:
                left, right = _cut(acc)
                PART: gl.constexpr = gl.SliceLayout(1, left.type.layout)
                some = gl.convert_layout(unit, PART, assert_trivial=True)
                _finish(left, some, scale, bias, out, y, m, n, N, THEN)
                _finish(right, some, scale, bias, out, y, m, n + BN // 2, N, THEN)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M", "N", "C", "TM", "TN", "whole", "rest", "sharers"])
def product(
    x,
    x_scale,
    codes,
    scale,
    bias,
    out,
    partial,
    locks,
    M,
    N,
    TM,
    TN,
    C,
    whole,
    rest,
    sharers,
    STAGES: gl.constexpr,
    STRIPE: gl.constexpr,
    THEN: gl.constexpr,
):
    """`out[M, N] = (x[M, K] @ W[N, K].T) * x_scale * scale + bias`, through a function.

    Args:
        x, codes: descriptors of blocks [BM / 2, 128] and [BN, 128]; out: of blocks [BM / 2, columns].
        x_scale: float32 [M]; scale: [N].
        partial: sums [2 * sharers, BM, BN], locks: int32 zeros, two per tile that is shared; or None.
        C: stretches of 128 columns; TM, TN: tiles of tokens and of rows.
        whole: tiles that one block takes alone; rest: tiles after them, which `sharers` blocks share.
        THEN: what results go through, by name.
    """
    xs = gl.allocate_shared_memory(x.dtype, [2 * STAGES, x.block_shape[0], 128], x.layout)
    ws = gl.allocate_shared_memory(x.dtype, [STAGES, codes.block_shape[0], 128], codes.layout)
    ys = gl.allocate_shared_memory(out.dtype, [2, out.block_shape[0], out.block_shape[1]], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_multiplier, (
                x_scale, scale, bias, out, partial, locks, ys, xs, ws, full, empty, M, N, TM, TN, C, whole, rest,
                sharers, 0, STRIPE, THEN,
            )),
            (_multiplier, (
                x_scale, scale, bias, out, partial, locks, ys, xs, ws, full, empty, M, N, TM, TN, C, whole, rest,
                sharers, 1, STRIPE, THEN,
            )),
            (_loader, (x, codes, xs, ws, full, empty, TM, TN, C, whole, rest, sharers, STRIPE)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
