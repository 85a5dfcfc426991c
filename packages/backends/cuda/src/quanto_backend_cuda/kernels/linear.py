# SPDX-License-Identifier: Apache-2.0
"""Weight-only linear: decode in registers, multiply on tensor cores.

The weight is the left operand, `out.T = W @ x.T`: its rows fill the 64 that `wgmma` needs whatever the number of tokens
is, it goes from memory to registers once, and only x is read through shared memory.

Few tokens leave columns of the smallest instruction (16) empty. `KW` stretches of the input dimension are multiplied at
once: the tile has `KW * BN` rows, the tokens of stretch b stand in columns `b * BM …`, and of the product only the
blocks on the diagonal count. That splits the input dimension inside a block of threads, without a second pass.

Bound: bytes of the weight below about 64 tokens, the tensor cores above 256.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import fetch, lanes, row_bytes, rows_at, scale_at, scale_value
from .decode import decode, natural
from .dependent import launch_dependents, wait_for_kernel_ahead
from .experts import find_expert

__all__ = ["linear"]


@triton.jit(do_not_specialize=["M", "C", "G", "E", "splits"])
def linear(
    x,
    codes,
    scale,
    zero,
    shared,
    bias,
    out,
    partial,
    locks,
    offsets,
    M,
    N,
    K,
    C,
    G,
    E,
    splits,
    KIND: tl.constexpr,
    TILED: tl.constexpr,
    STILED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SCALE8: tl.constexpr,
    FLOAT_ZERO: tl.constexpr,
    EVEN: tl.constexpr,
    TAIL: tl.constexpr,
    ON_WEIGHT: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    KW: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
    SYNC: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDE: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """`out[M, N] = x[M, K] @ W.T * scale + bias`, or of experts: W `[E, N, K]`, rows of x sorted by expert.

    Args:
        x: float16 or bfloat16, contiguous.
        codes: the weight; tiles of 16 rows and 128 columns (`TILED`), or canonical rows of 128 C codes.
        scale, zero: one per `GROUP` columns (0: per row) and `ROWS` rows (0: one for all).
        shared: float32 factor of the whole weight, or None.
        partial, locks: float32 [splits, M, N] and int32 zeros, one per tile of the result (`SPLIT`).
        offsets: int32 [E], where each expert's rows end, or None; EXPERTS is a power of two not below E.
        C: stretches of 128 columns; G: groups per row.
        EVEN: K is 128 C; TAIL: KW does not divide the stretches of every split.
        ON_WEIGHT: scale the weight in registers, which groups below 128 need; else the product.
        SYNC: multiply by `mma.sync` (fewer than four warps, or no Hopper) instead of `wgmma`.
        AHEAD: tiles of the weight to fetch into the L2 before the kernel ahead has ended.
        WIDE: multiply in float32, for the interpreter, which knows no bfloat16.
    """
    pm = tl.program_id(0)
    pn = tl.program_id(1)
    pk = tl.program_id(2)
    D: tl.constexpr = tl.float32 if WIDE else x.dtype.element_ty
    R: tl.constexpr = KW * BN
    SUB: tl.constexpr = 128 if GROUP % 128 == 0 else (16 if GROUP % 32 else 32)
    PER: tl.constexpr = GROUP // 128 if GROUP >= 128 else (2147483647 if GROUP == 0 else 1)
    r = tl.arange(0, R)
    col = tl.arange(0, KW * BM)
    slice_r = r // BN
    slice_c = col // BM
    n = tl.minimum(pn * BN + r % BN, N - 1)
    first = pm * BM
    stop = M
    if offsets is not None:
        expert, first, stop = find_expert(offsets, E, pm, BM, EXPERTS)
        if expert >= E:
            return
        codes += expert.to(tl.int64) * N * (C * row_bytes(KIND))
        scale += expert * N * G
        if zero is not None:
            zero += expert * N * G
        if bias is not None:
            bias += expert * N
    m = tl.minimum(first + col % BM, stop - 1)
    # Tokens that do not exist are not read: hundreds of blocks after the same few lines of x keep the L2 busy.
    SPARSE: tl.constexpr = BM > 1 and BM <= 64
    there = (first + col % BM < stop)[:, None]
    each = tl.cdiv(tl.cdiv(C, KW), splits) * KW
    begin = pk * each
    end = tl.minimum(begin + each, C)
    # A loop that may not run would make ptxas serialize the wgmma in it (C7515): M=256 took 302 us instead of 190.
    tl.assume(end > begin)
    k = tl.arange(0, 128)
    xs = x + first.to(tl.int64) * K
    x_at = (m - first)[:, None] * K + slice_c[:, None] * 128 + k[None, :]
    base, STEP = rows_at(n, C, KIND, TILED)
    words = codes.to(tl.pointer_type(tl.int32))
    at_words = base[:, None, None] + lanes(KIND)
    if KIND == "int3":
        planes = codes.to(tl.pointer_type(tl.int16))
        at_plane = (2 * base - (n % 16) * 8 + 256)[:, None, None] + lanes(KIND)
    acc = tl.zeros((R, KW * BM), tl.float32)
    if AHEAD > 0:
        _fetch_tiles(words, N, pn, begin, end, C, KIND, BN, AHEAD)
    if PDL:
        wait_for_kernel_ahead()
        launch_dependents()
    if GROUP > 0 and SUB == 128 and not ON_WEIGHT:
        at = scale_at(n, (begin + slice_r) // PER, G, ROWS, STILED)
        ahead = tl.load(scale + at, mask=begin + slice_r < end, other=0.0)
    for c in tl.range(begin, end, KW, num_stages=STAGES):
        if KW == 1:
            chunk = c
            step = c * STEP
        else:
            chunk = c + slice_r
            if TAIL:
                chunk = tl.minimum(chunk, end - 1)
            step = (chunk * STEP)[:, None, None]
        T = tl.load(words + step + at_words)
        H = None
        if KIND == "int3":
            H = tl.load(planes + 2 * step + at_plane).to(tl.int32) & 0xFFFF
        if EVEN and not TAIL and not SPARSE:
            X = tl.load(xs + c * 128 + x_at)
        elif EVEN and not TAIL:
            X = tl.load(xs + c * 128 + x_at, mask=there, other=0.0)
        elif EVEN:
            X = tl.load(xs + c * 128 + x_at, mask=there & (c + slice_c < end)[:, None], other=0.0)
        else:
            column = (c + slice_c)[:, None] * 128 + k[None, :]
            X = tl.load(xs + c * 128 + x_at, mask=(column < K) & (c + slice_c < end)[:, None], other=0.0)
        group = chunk // PER
        Z = None
        if zero is not None and not FLOAT_ZERO and SUB == 128:
            Z = tl.load(zero + scale_at(n, group, G, ROWS, STILED)).to(tl.int32)[:, None, None]
        A = decode(T, H, Z, KIND, D, ASM, SYNC)
        if FLOAT_ZERO and SUB == 128:
            A -= tl.load(zero + scale_at(n, group, G, ROWS, STILED)).to(D)[:, None]
        if SUB < 128:
            A = _scaled(A, scale, zero, n, chunk, G, GROUP, SUB, ROWS, STILED, SCALE8, TILED, SYNC)
        elif ON_WEIGHT:
            A *= scale_value(tl.load(scale + scale_at(n, group, G, ROWS, STILED)), SCALE8).to(D)[:, None]
        if not TILED:
            X = natural(X, KIND)
        if SYNC:
            X = tl.permute(tl.reshape(X, (KW * BM, 8, 2, 4, 2)), (0, 1, 3, 2, 4))
            X = tl.reshape(X, (KW * BM, 128))
        X = X.to(D)
        if GROUP > 0 and SUB == 128 and not ON_WEIGHT:
            product = tl.dot(A, tl.trans(X))
            at = scale_at(n, (chunk + KW) // PER, G, ROWS, STILED)
            factor = scale_value(ahead, SCALE8)
            ahead = tl.load(scale + at, mask=c + KW + slice_r < end, other=0.0)
            acc += product * factor[:, None]
        else:
            acc = tl.dot(A, tl.trans(X), acc)
    if KW > 1:
        acc = tl.where(slice_r[:, None] == slice_c[None, :], acc, 0.0)
        acc = tl.sum(tl.sum(tl.reshape(acc, (KW, BN, KW, BM)), 2), 0)
    _finish(
        acc, scale, shared, bias, out, partial, locks, M, N, first, stop, splits, GROUP, ROWS, BN, BM, SPLIT, SCALE8
    )


@triton.jit
def _fetch_tiles(words, N, pn, begin, end, C, KIND: tl.constexpr, BN: tl.constexpr, AHEAD: tl.constexpr):
    """Fetches the first `AHEAD` tiles of this block's weight."""
    BYTES: tl.constexpr = 16 * row_bytes(KIND)
    DOWN: tl.constexpr = 1 if BN < 16 else BN // 16
    i = tl.arange(0, AHEAD)
    row = tl.minimum(pn * BN // 16 + i % DOWN, (N - 1) // 16)
    chunk = begin + i // DOWN
    fetch(words + (row.to(tl.int64) * C + chunk) * (BYTES // 4), chunk < end, BYTES)


@triton.jit
def _scaled(
    A,
    scale,
    zero,
    n,
    chunk,
    G,
    GROUP: tl.constexpr,
    SUB: tl.constexpr,
    ROWS: tl.constexpr,
    STILED: tl.constexpr,
    SCALE8: tl.constexpr,
    TILED: tl.constexpr,
    SYNC: tl.constexpr,
):
    """Groups that end within 128 columns: each `SUB` columns look up their own."""
    R: tl.constexpr = A.shape[0]
    D: tl.constexpr = A.dtype
    J: tl.constexpr = 128 // SUB
    column = (n * 0 + chunk)[:, None] * 128 + tl.arange(0, J)[None, :] * SUB
    where = scale_at(n[:, None], tl.minimum(column // GROUP, G - 1), G, ROWS, STILED)
    s = scale_value(tl.load(scale + where), SCALE8).to(D)
    if TILED:
        A = tl.reshape(A, (R, J, SUB))
        if zero is not None:
            A -= tl.load(zero + where).to(D)[:, :, None]
        A *= s[:, :, None]
    else:  # canonical words: a lane holds 32 columns in a row
        A = tl.reshape(A, (R, 8, 4, 4) if SYNC else (R, 16, 4, 2))
        if zero is not None:
            A -= tl.load(zero + where).to(D)[:, None, :, None]
        A *= s[:, None, :, None]
    return tl.reshape(A, (R, 128))


@triton.jit
def _finish(
    acc,
    scale,
    shared,
    bias,
    out,
    partial,
    locks,
    M,
    N,
    first,
    stop,
    splits,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    SPLIT: tl.constexpr,
    SCALE8: tl.constexpr,
):
    """Adds the splits in a fixed order (the last to arrive does), scales per row, adds the bias, stores."""
    pm = tl.program_id(0)
    pn = tl.program_id(1)
    n = pn * BN + tl.arange(0, BN)
    m = first + tl.arange(0, BM)
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    inside = (m < stop)[None, :] & (n < N)[:, None]
    last = True
    if SPLIT:
        size = tl.cast(M, tl.int64) * N  # Inductor makes a constant of M = 1
        tl.store(partial + tl.program_id(2) * size + at, acc, mask=inside)
        tl.debug_barrier()  # every thread's part is written before one thread says so
        lock = locks + pm * tl.num_programs(1) + pn
        last = tl.atomic_add(lock, 1, sem="acq_rel", scope="gpu") == splits - 1
        if last:
            acc = tl.zeros((BN, BM), tl.float32)
            for i in range(splits):
                acc += tl.load(partial + i * size + at, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(lock, 0)
    if last:
        if GROUP == 0:
            s = scale_value(tl.load(scale + scale_at(n, 0, 1, ROWS, False), mask=n < N, other=0.0), SCALE8)
            acc *= s[:, None]
        if shared is not None:
            acc *= tl.load(shared)
        if bias is not None:
            acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)
