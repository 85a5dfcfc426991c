# SPDX-License-Identifier: Apache-2.0
"""Weight-only linear for many tokens on Hopper, in Gluon: warps that load, and warpgroups that decode and multiply.

`out.T = W @ x.T`. One warp fills a ring of tiles of x by TMA. Two warpgroups, each with half the rows of a tile of the
weight, load packed words straight into registers, decode them to the left operand of `wgmma` there, and start the next
product before they wait for the last: tensor cores see no decoding. Nobody waits for anybody but through the ring.

A block of threads takes whole tiles first. What is left when they do not fill the GPU once more is cut along the input
dimension into as many equal pieces as there are blocks; of the blocks that have a part of a tile the last to arrive
adds the parts, in a fixed order.

Bound: the tensor cores. A tile of 128 x 256 reads 36 bytes from the L2 in the time of one step of 64 columns.
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .addresses import row_bytes, rows_at, scale_at, scale_value
from .cluster import area, arrive, expect, half, in_clusters, met
from .decode import zero_operand
from .dependent import launch_dependents, wait_for_kernel_ahead
from .operand import operand, twice
from .pieces import after, gathered, piece, pieces, place

__all__ = ["specialized"]

# Newer versions of Triton have other names.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@triton.constexpr_function
def _words_layout(ROWS, WORDS):
    """Words [ROWS, 4, WORDS] such that each thread decodes what `wgmma` wants of it."""
    registers = [[0, 0, 1 << i] for i in range(WORDS.bit_length() - 1)] + [[8, 0, 0]]
    registers += [[64 << i, 0, 0] for i in range((ROWS // 64).bit_length() - 1)]
    lanes = [[0, 1, 0], [0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0, 0], [32, 0, 0]], [], [ROWS, 4, WORDS])


@gluon.jit
def _loader(x, xs, full, empty, TM, TN, C, whole, rest, sharers, STRIPE: gl.constexpr, CLUSTER: gl.constexpr):
    if CLUSTER > 1:
        arrive()
    STAGES: gl.constexpr = xs.shape[0]
    BM: gl.constexpr = xs.shape[1]
    wait_for_kernel_ahead()
    launch_dependents()
    stage = gl.program_id(0) * 0
    phase = stage + 1
    for j in range(pieces(whole, rest, sharers, C)):
        tile, begin, end = piece(j, whole, rest, sharers, C)
        pm, _ = place(tile, TM, TN, STRIPE)
        for c in range(2 * begin, 2 * end):
            mbarrier.wait(empty.index(stage), phase)
            mbarrier.expect(full.index(stage), BM * 128)
            _load(x, [pm * BM, c * 64], full.index(stage), xs.index(stage))
            stage, phase = after(stage, phase, STAGES)
    if CLUSTER > 1:  # what every thread of a cluster does
        met()
        arrive()
        met()


@gluon.jit
def _decoded(
    T,
    raw,
    zraw,
    KIND: gl.constexpr,
    D: gl.constexpr,
    DOT: gl.constexpr,
    SCALED: gl.constexpr,
    ZEROS: gl.constexpr,
):
    """The operand of 64 columns, from their words, scales and zero points."""
    S = None
    Z = None
    if SCALED:
        scale = twice(scale_value(raw, ""), D)
        S, T = gl.broadcast(gl.expand_dims(gl.expand_dims(scale, 1), 2), T)
    if ZEROS:
        zero = zero_operand(zraw, KIND, D)
        Z, T = gl.broadcast(gl.expand_dims(gl.expand_dims(zero, 1), 2), T)
    return gl.convert_layout(operand(T, Z, S, KIND, D), DOT, assert_trivial=True)


@gluon.jit
def _both(T, HALF: gl.constexpr):
    """Words of 128 columns as those of the first 64 and of the last."""
    first, second = T.reshape((T.shape[0], 4, 2, T.shape[2] // 2)).permute((0, 1, 3, 2)).split()
    return gl.convert_layout(first, HALF, assert_trivial=True), gl.convert_layout(second, HALF, assert_trivial=True)


@gluon.jit
def _two(pointer, n, chunk, G, GROUP: gl.constexpr):
    """Scales or zero points of the first 64 columns of a stretch, and of the last; where there are none, anything."""
    if pointer is None or GROUP == 0:
        return n, n
    elif GROUP % 128 == 0:
        value = gl.load(pointer + scale_at(n, chunk // (GROUP // 128), G, 1, True))
        return value, value
    else:
        second = gl.minimum(chunk * 2 + 1, G - 1)  # the last stretch may have one group
        first = pointer + scale_at(n, chunk * 2, G, 1, True)
        return gl.load(first), gl.load(pointer + scale_at(n, second, G, 1, True))


@gluon.jit
def _multiplier(
    codes,
    scale,
    zero,
    shared,
    bias,
    out,
    partial,
    locks,
    ys,
    xs,
    full,
    empty,
    extra,
    TM,
    TN,
    N,
    C,
    G,
    whole,
    rest,
    sharers,
    side: gl.constexpr,
    KIND: gl.constexpr,
    GROUP: gl.constexpr,
    STRIPE: gl.constexpr,
    CLUSTER: gl.constexpr,
):
    if CLUSTER > 1:
        arrive()
    D: gl.constexpr = xs.dtype
    STAGES: gl.constexpr = xs.shape[0]
    BM: gl.constexpr = xs.shape[1]
    ROWS: gl.constexpr = ys.shape[2]
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    DOT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, MMA)
    SCALED: gl.constexpr = GROUP > 0
    ZEROS: gl.constexpr = zero is not None and GROUP > 0
    WORDS: gl.constexpr = row_bytes(KIND) // 16
    ALL: gl.constexpr = _words_layout(ROWS, WORDS)
    HALF: gl.constexpr = _words_layout(ROWS, WORDS // 2)
    words = codes.to(gl.pointer_type(gl.int32), bitcast=True)
    lane = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, ALL))) * WORDS
    word = gl.arange(0, WORDS, gl.SliceLayout(0, gl.SliceLayout(1, ALL)))
    r = gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(2, ALL)))
    rs = gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(2, HALF)))
    ro = gl.arange(0, ROWS, ROW)
    stage = gl.program_id(0) * 0
    phase = stage
    for j in range(pieces(whole, rest, sharers, C)):
        tile, begin, end = piece(j, whole, rest, sharers, C)
        gl.assume(end > begin)
        pm, pn = place(tile, TM, TN, STRIPE)
        first = (pn * 2 + side) * ROWS
        base, STEP = rows_at(gl.minimum(first + r, N - 1), C, KIND, True)
        at = words + (gl.expand_dims(gl.expand_dims(base, 1), 2) + lane[None, :, None] + word[None, None, :])
        n = gl.minimum(first + rs, N - 1)
        low, high = _both(gl.load(at + begin * STEP), HALF)
        s0, s1 = _two(scale, n, begin, G, GROUP)
        z0, z1 = _two(zero, n, begin, G, GROUP)
        A = _decoded(low, s0, z0, KIND, D, DOT, SCALED, ZEROS)
        ahead = gl.minimum(begin + 1, end - 1)
        T = gl.load(at + ahead * STEP)
        t0, t1 = _two(scale, n, ahead, G, GROUP)
        y0, y1 = _two(zero, n, ahead, G, GROUP)
        acc = gl.zeros([ROWS, BM], gl.float32, MMA)
        for c in range(begin, end):
            mbarrier.wait(full.index(stage), phase)
            token = warpgroup_mma(A, xs.index(stage).permute((1, 0)), acc, is_async=True)
            B = _decoded(high, s1, z1, KIND, D, DOT, SCALED, ZEROS)
            acc, A = warpgroup_mma_wait(0, deps=[token, A])
            mbarrier.arrive(empty.index(stage))
            stage, phase = after(stage, phase, STAGES)
            mbarrier.wait(full.index(stage), phase)
            token = warpgroup_mma(B, xs.index(stage).permute((1, 0)), acc, is_async=True)
            low, high = _both(T, HALF)
            s1 = t1
            z1 = y1
            A = _decoded(low, t0, y0, KIND, D, DOT, SCALED, ZEROS)
            ahead = gl.minimum(c + 2, end - 1)
            T = gl.load(at + ahead * STEP)
            t0, t1 = _two(scale, n, ahead, G, GROUP)
            y0, y1 = _two(zero, n, ahead, G, GROUP)
            acc, B = warpgroup_mma_wait(0, deps=[token, B])
            mbarrier.arrive(empty.index(stage))
            stage, phase = after(stage, phase, STAGES)
        if CLUSTER > 1:
            rank = gl.program_id(0) % CLUSTER
            last = rank == side
            acc = half(acc, extra, last, rank)
        else:
            acc, last = gathered(acc, partial, locks, tile, begin, end, C, whole, rest, sharers, side)
        if last:
            no = gl.minimum(first + ro, N - 1)
            if GROUP == 0:
                acc = acc * scale_value(gl.load(scale + no), "")[:, None]
            if shared is not None:
                acc = acc * gl.load(shared)
            if bias is not None:
                acc = acc + gl.load(bias + no).to(gl.float32)[:, None]
            tma.store_wait(0)
            ys.index(side).permute((1, 0)).store(acc.to(D))
            fence_async_shared()
            _store(out, [pm * BM, first], ys.index(side))
    tma.store_wait(0)
    if CLUSTER > 1:
        met()


@in_clusters
@gluon.jit(do_not_specialize=["C", "G", "TM", "TN", "whole", "rest", "sharers"])
def specialized(
    x,
    codes,
    scale,
    zero,
    shared,
    bias,
    out,
    partial,
    locks,
    N,
    C,
    G,
    TM,
    TN,
    whole,
    rest,
    sharers,
    KIND: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    STRIPE: gl.constexpr,
    CLUSTER: gl.constexpr,
    EXTRA: gl.constexpr,
):
    """`out[M, N] = x[M, K] @ W.T * scale + bias` for a tiled weight.

    Args:
        x: descriptor of blocks [BM, 64]; out: descriptor of blocks [BM, BN / 2].
        codes, scale, zero: tiled; one scale per `GROUP` columns, a multiple of 64 (0: a row).
        shared: float32 factor of the whole weight, or None.
        partial: float32 [2 * sharers, BN, BM], locks: int32 zeros, two per tile that is shared; or None.
        C: stretches of 128 columns; G: groups per row; TM, TN: tiles of tokens and of rows.
        whole: tiles that one block takes alone; rest: tiles after them, which `sharers` blocks share.
        CLUSTER: 2 where each tile has two blocks, which are a cluster, or 1; EXTRA: bytes that they share, or 0.
    """
    xs = gl.allocate_shared_memory(x.dtype, [STAGES, x.block_shape[0], x.block_shape[1]], x.layout)
    ys = gl.allocate_shared_memory(x.dtype, [2, out.block_shape[0], out.block_shape[1]], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    fence_async_shared()
    extra = N * 0
    if CLUSTER > 1:
        extra, _ = area(EXTRA)
        expect(extra, x.block_shape[0] * out.block_shape[1] * 4)
    # All threads of a cluster meet, so none may be in a warp that Triton only adds to make fours of them.
    LOADERS: gl.constexpr = 4 if CLUSTER > 1 else 1
    gl.warp_specialize(
        [
            (_multiplier, (
                codes, scale, zero, shared, bias, out, partial, locks, ys, xs, full, empty, extra, TM, TN, N, C, G,
                whole, rest, sharers, 0, KIND, GROUP, STRIPE, CLUSTER,
            )),
            (_multiplier, (
                codes, scale, zero, shared, bias, out, partial, locks, ys, xs, full, empty, extra, TM, TN, N, C, G,
                whole, rest, sharers, 1, KIND, GROUP, STRIPE, CLUSTER,
            )),
            (_loader, (x, xs, full, empty, TM, TN, C, whole, rest, sharers, STRIPE, CLUSTER)),
        ],
        [4, LOADERS],
        [240, 24],
    )  # fmt: skip
