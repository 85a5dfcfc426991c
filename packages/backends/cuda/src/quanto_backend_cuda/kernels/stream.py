# SPDX-License-Identifier: Apache-2.0
"""Weight-only linear for few tokens on Hopper, in Gluon: the weight is asked for before anything else.

The tile is that of `quanto_backend_cuda.kernels.linear`: `out.T = W @ x.T`, with `KW` stretches of the input dimension
side by side, of whose product the blocks on the diagonal count. What differs is when memory is read. A block of threads
starts the copies of its first `STAGES - 1` tiles of the weight as it begins, which is while the kernel ahead still
runs; x, which that kernel may be writing, is read after it has ended. Blocks are small enough that those of two kernels
find room beside each other, so that in a row of linear layers memory is never idle.

Bound: the bytes of the weight.
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from .addresses import row_bytes, rows_at, scale_value
from .cluster import area, arrive, exchange, expect, in_clusters, met, part
from .copies import copy_weight, copy_x, lines_at, stretch_at, thirds_at
from .decode import zero_operand
from .dependent import launch_dependents, wait_for_kernel_ahead
from .operand import operand

__all__ = ["stream"]

# Newer versions of Triton have another name.
_barrier = getattr(gl, "thread_barrier", None) or gl.barrier


@triton.constexpr_function
def _bits(count):
    return [1 << i for i in range(count.bit_length() - 1)]


@triton.constexpr_function
def _words_layout(ROWS, WORDS, WARPS):
    """Words [ROWS, 4 * WORDS] such that each thread decodes what `wgmma` wants of it."""
    registers = [[0, i] for i in _bits(WORDS)] + [[8, 0]]
    registers += [[16 * WARPS * i, 0] for i in _bits(ROWS // (16 * WARPS))]
    lanes = [[0, WORDS], [0, 2 * WORDS], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16 * i, 0] for i in _bits(WARPS)], [], [ROWS, 4 * WORDS])


@triton.constexpr_function
def _thirds_layout(ROWS, WARPS):
    """Third bits of 128 columns [ROWS, 4], beside the words that they belong to."""
    registers = [[8, 0]] + [[16 * WARPS * i, 0] for i in _bits(ROWS // (16 * WARPS))]
    lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16 * i, 0] for i in _bits(WARPS)], [], [ROWS, 4])


@triton.constexpr_function
def _half_layout(ROWS, WORDS, WARPS):
    """Words [ROWS, 4, WORDS] of 64 columns, likewise."""
    registers = [[0, 0, i] for i in _bits(WORDS)] + [[8, 0, 0]]
    registers += [[16 * WARPS * i, 0, 0] for i in _bits(ROWS // (16 * WARPS))]
    lanes = [[0, 1, 0], [0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]]
    warps = [[16 * i, 0, 0] for i in _bits(WARPS)]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [ROWS, 4, WORDS])


@gluon.jit
def _decoded(T, H, Z, KIND: gl.constexpr, D: gl.constexpr, DOT: gl.constexpr):
    if Z is not None:
        Z, T = gl.broadcast(gl.expand_dims(gl.expand_dims(Z, 1), 2), T)
    return gl.convert_layout(operand(T, Z, None, KIND, D, H), DOT, assert_trivial=True)


@gluon.jit
def _zero_points(zs, at, HALF: gl.constexpr, KIND: gl.constexpr, D: gl.constexpr):
    raw = zs.index(at).load(gl.SliceLayout(1, gl.SliceLayout(2, HALF)))
    return zero_operand(raw, KIND, D)


@gluon.jit
def _finished(total, scale, shared, bias, out, first_row, first, M, N, GROUP: gl.constexpr):
    """Scales sums [rows, tokens], adds the bias and stores the result."""
    LAYOUT: gl.constexpr = total.type.layout
    n = first_row + gl.arange(0, total.shape[0], gl.SliceLayout(1, LAYOUT))
    m = first + gl.arange(0, total.shape[1], gl.SliceLayout(0, LAYOUT))
    rows = gl.minimum(n, N - 1)
    if GROUP == 0:
        total = total * scale_value(gl.load(scale + rows), "")[:, None]
    if shared is not None:
        total = total * gl.load(shared)
    if bias is not None:
        total = total + gl.load(bias + rows).to(gl.float32)[:, None]
    inside = (n < N)[:, None] & (m < M)[None, :]
    gl.store(out + (m.to(gl.int64)[None, :] * N + n[:, None]), total.to(out.dtype.element_ty), mask=inside)


@in_clusters
@gluon.jit(do_not_specialize=["M", "C", "G", "splits"])
def stream(
    x,
    codes,
    scale,
    zero,
    shared,
    bias,
    out,
    partial,
    locks,
    M,
    N,
    K,
    C,
    G,
    splits,
    KIND: gl.constexpr,
    GROUP: gl.constexpr,
    BN: gl.constexpr,
    BM: gl.constexpr,
    KW: gl.constexpr,
    STAGES: gl.constexpr,
    PDL: gl.constexpr,
    CLUSTER: gl.constexpr,
    EXTRA: gl.constexpr,
):
    """`out[M, N] = x[M, K] @ W.T * scale + bias` for a tiled weight.

    Args:
        x: contiguous; K is a multiple of 128.
        codes, scale, zero: tiled; one scale per `GROUP` columns (64, or a multiple of 128; 0: a row).
        shared: float32 factor of the whole weight, or None.
        partial: float32, `BN * BM` for each block of threads, locks: int32 zeros, one per tile; or None.
        C: stretches of 128 columns; G: groups per row; splits: of the input dimension, over blocks of threads.
        CLUSTER: blocks of threads that form a cluster, which shares a tile; 1, or `splits`.
        EXTRA: bytes of `quanto_backend_cuda.kernels.cluster.room` for it, or 0.
    """
    pn = gl.program_id(0) // CLUSTER
    pk = gl.program_id(1) if CLUSTER == 1 else gl.program_id(0) % CLUSTER
    first = gl.program_id(2) * BM
    D: gl.constexpr = x.dtype.element_ty
    WARPS: gl.constexpr = gl.num_warps()
    R: gl.constexpr = KW * BN
    COLUMNS: gl.constexpr = KW * BM
    THREE: gl.constexpr = KIND == "int3"
    WORDS: gl.constexpr = 2 if THREE else row_bytes(KIND) // 16
    ROWW: gl.constexpr = 4 * WORDS
    J: gl.constexpr = 128 // GROUP if GROUP > 0 and GROUP < 128 else 1
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, COLUMNS, 16])
    DOT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, MMA)
    ALL: gl.constexpr = _words_layout(R, WORDS, WARPS)
    HALF: gl.constexpr = _half_layout(R, WORDS // 2, WARPS)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    TOKENS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([COLUMNS, 64], D)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 4], [128 // ROWW, ROWW // 4], [WARPS, 1], [1, 0])
    ws = gl.allocate_shared_memory(gl.int32, [STAGES, R, ROWW], PLAIN)
    xs = gl.allocate_shared_memory(D, [2 * STAGES, COLUMNS, 64], TOKENS)
    each = gl.cdiv(gl.cdiv(C, KW), splits) * KW
    begin = pk * each
    end = gl.minimum(begin + each, C)
    # where each thread copies from
    rw = gl.arange(0, R, gl.SliceLayout(1, WIDE))
    base, STEP = rows_at(pn * BN + rw % BN, C, KIND, True)
    word = gl.arange(0, ROWW, gl.SliceLayout(0, WIDE))
    words = codes.to(gl.pointer_type(gl.int32), bitcast=True)
    at = words + ((base + rw // BN * STEP)[:, None] + word[None, :])
    hs = ws
    thirds = None
    if THREE:  # behind the two low bits of 16 rows
        hs = gl.allocate_shared_memory(gl.int32, [STAGES, R, 4], PLAIN)
        thirds = thirds_at(words, pn, C, R, BN)
    ss = ws
    zs = ws
    scales = None
    zeros = None
    if GROUP > 0:
        ss = gl.allocate_shared_memory(scale.dtype.element_ty, [STAGES * J, R], LINE)
        scales = lines_at(scale, pn, G, R, BN)
        if zero is not None:
            zs = gl.allocate_shared_memory(gl.int8, [STAGES * J, R], LINE)
            zeros = lines_at(zero, pn, G, R, BN)
    # Blocks begin at different places: else all would ask for the same lines of x at once (8192 x 28672, 16 tokens of
    # int4: 51 us in step, 47.5 so). One token has few lines.
    steps = gl.cdiv(end - begin, KW)
    turn = 0 if BM < 16 else pn % steps
    for s in gl.static_range(STAGES - 1):
        c = stretch_at(s, turn, steps, begin, end, KW)
        copy_weight(ws, hs, ss, zs, s, at, thirds, scales, zeros, c, end, N, pn, STEP, BN, GROUP)
    async_copy.commit_group()
    extra = pn
    ring = pn
    if CLUSTER > 1:
        extra, ring = area(EXTRA)
        gl.static_assert(CLUSTER * part(BN // CLUSTER, BM) <= STAGES * (R * ROWW * 4 + COLUMNS * 256))
        expect(extra, (CLUSTER - 1) * part(BN // CLUSTER, BM))
        arrive()
    if PDL:
        wait_for_kernel_ahead()
        launch_dependents()
    LOAD_X: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    col = gl.arange(0, COLUMNS, gl.SliceLayout(1, LOAD_X))
    column = gl.arange(0, 64, gl.SliceLayout(0, LOAD_X))
    token = gl.minimum(first + col % BM, M - 1)
    x_at = x + ((token.to(gl.int64) * K + col // BM * 128)[:, None] + column[None, :])
    for s in gl.static_range(STAGES - 1):
        copy_x(xs, s, x_at, stretch_at(s, turn, steps, begin, end, KW), end, first, M, BM)
        async_copy.commit_group()
    if CLUSTER > 1:
        met()  # here, where all wait for x anyway
    acc = gl.zeros([R, COLUMNS], gl.float32, MMA)
    nothing = gl.zeros([R, COLUMNS], gl.float32, MMA)
    stage = pn * 0
    for i in range(steps):
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        _barrier()
        free = gl.where(stage == 0, STAGES - 1, stage - 1)
        if i + STAGES - 1 < steps:
            later = stretch_at(i + STAGES - 1, turn, steps, begin, end, KW)
            copy_weight(ws, hs, ss, zs, free, at, thirds, scales, zeros, later, end, N, pn, STEP, BN, GROUP)
            copy_x(xs, free, x_at, later, end, first, M, BM)
        async_copy.commit_group()
        T = ws.index(stage).load(ALL).reshape((R, 4, 2, WORDS // 2)).permute((0, 1, 3, 2))
        low, high = T.split()
        low = gl.convert_layout(low, HALF, assert_trivial=True)
        high = gl.convert_layout(high, HALF, assert_trivial=True)
        x0 = xs.index(2 * stage).permute((1, 0))
        x1 = xs.index(2 * stage + 1).permute((1, 0))
        z0 = None
        z1 = None
        if zero is not None and GROUP > 0:
            z0 = _zero_points(zs, stage * J, HALF, KIND, D)
            z1 = z0 if J == 1 else _zero_points(zs, stage * J + J - 1, HALF, KIND, D)
        h0 = None
        h1 = None
        if THREE:
            H = hs.index(stage).load(_thirds_layout(R, WARPS))
            h0 = gl.convert_layout(H.reshape((R, 4, 1)), HALF, assert_trivial=True)
            h1 = h0 >> 16
        A = _decoded(low, h0, z0, KIND, D, DOT)
        if GROUP == 0:
            one = warpgroup_mma(A, x0, acc, is_async=True)
            B = _decoded(high, h1, z1, KIND, D, DOT)
            one = warpgroup_mma(B, x1, one, is_async=True)
            acc, A, B = warpgroup_mma_wait(0, deps=[one, A, B])
        elif J == 1:
            one = warpgroup_mma(A, x0, nothing, use_acc=False, is_async=True)
            B = _decoded(high, h1, z1, KIND, D, DOT)
            one = warpgroup_mma(B, x1, one, is_async=True)
            factor = scale_value(ss.index(stage).load(ROW), "")
            product, A, B = warpgroup_mma_wait(0, deps=[one, A, B])
            acc = acc + product * factor[:, None]
        else:
            one = warpgroup_mma(A, x0, nothing, use_acc=False, is_async=True)
            B = _decoded(high, h1, z1, KIND, D, DOT)
            two = warpgroup_mma(B, x1, nothing, use_acc=False, is_async=True)
            s0 = scale_value(ss.index(2 * stage).load(ROW), "")
            s1 = scale_value(ss.index(2 * stage + 1).load(ROW), "")
            p0, p1, A, B = warpgroup_mma_wait(0, deps=[one, two, A, B])
            acc = acc + p0 * s0[:, None] + p1 * s1[:, None]
        stage = gl.where(stage == STAGES - 1, 0, stage + 1)
    # Rows of the result lie together. Parts are added so many at a time: each time takes a trip to the L2.
    MINE: gl.constexpr = BN * BM // (32 * WARPS) if BN * BM > 32 * WARPS else 1
    ONCE: gl.constexpr = 8 if MINE <= 8 else (4 if MINE <= 16 else 2)
    PARTS: gl.constexpr = gl.BlockedLayout([ONCE, 1, 1], [1, 32, 1], [1, WARPS, 1], [1, 2, 0])
    OUT: gl.constexpr = gl.SliceLayout(0, PARTS)
    if KW > 1:
        rd = gl.arange(0, R, ROW) // BN
        cd = gl.arange(0, COLUMNS, gl.SliceLayout(0, MMA)) // BM
        acc = gl.where(rd[:, None] == cd[None, :], acc, 0.0)
        acc = gl.sum(gl.sum(acc.reshape((KW, BN, KW, BM)), 2), 0)
    if CLUSTER > 1:
        async_copy.wait_group(0)
        _barrier()  # nobody reads the ring any more
        ROWS: gl.constexpr = BN // CLUSTER
        SIDE: gl.constexpr = ROWS if ROWS < 32 else 32
        SHARE: gl.constexpr = gl.BlockedLayout([1, 1], [SIDE, 32 // SIDE], [1, WARPS], [0, 1])
        total = exchange(acc, ring, extra, pk, CLUSTER, SHARE)
        _finished(total, scale, shared, bias, out, pn * BN + pk * ROWS, first, M, N, GROUP)
        met()
    else:
        total = gl.convert_layout(acc, OUT)
        last = True
        if partial is not None:
            r = gl.arange(0, BN, gl.SliceLayout(1, OUT))
            t = gl.arange(0, BM, gl.SliceLayout(0, OUT))
            tile = (gl.program_id(2) * gl.num_programs(0) + pn).to(gl.int64)
            corner = partial + tile * splits * (BN * BM) + (t[None, :] * BN + r[:, None])
            gl.store(corner + pk * (BN * BM), total)
            _barrier()  # every thread's part is written before one thread says so
            last = gl.atomic_add(locks + tile, 1, sem="acq_rel", scope="gpu") == splits - 1
            if last:
                total = gl.zeros([BN, BM], gl.float32, OUT)
                one_part = gl.arange(0, ONCE, gl.SliceLayout(1, gl.SliceLayout(2, PARTS)))[:, None, None]
                for i in range(0, splits, ONCE):
                    at_part = gl.expand_dims(corner, 0) + (i + one_part) * (BN * BM)
                    total += gl.sum(gl.load(at_part, mask=i + one_part < splits, other=0.0, cache_modifier=".cg"), 0)
                gl.store(locks + tile, 0)
        if last:
            _finished(total, scale, shared, bias, out, pn * BN, first, M, N, GROUP)
