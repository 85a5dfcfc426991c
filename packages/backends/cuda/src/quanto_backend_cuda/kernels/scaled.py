# SPDX-License-Identifier: Apache-2.0
"""Linear layers on quantized activations: int8 x int8, float8 x float8, int4 x int8; what follows is in their epilogue.

`few` is the kernel of `quanto_backend_cuda.kernels.linear` with operands that need no decoding, or nibbles that become
bytes; `many` the ordinary tiled product. Bound: bytes of the weight below about 128 tokens, the tensor cores above 512.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import fetch, scale_at
from .dependent import launch_dependents, wait_for_kernel_ahead
from .epilogue import put, rescaled, through

__all__ = ["few", "many"]


@triton.jit
def nibble_bytes(T, zero):
    """Canonical int4 words [rows, 4, 4] to int8 [rows, 128]: code i of word t of lane q in column 16 i + 4 q + t."""
    R: tl.constexpr = T.shape[0]
    Z = 8 if zero is None else zero + 8
    a = tl.join(((T & 15) - Z).to(tl.int8), (((T >> 4) & 15) - Z).to(tl.int8))
    b = tl.join((((T >> 8) & 15) - Z).to(tl.int8), (((T >> 12) & 15) - Z).to(tl.int8))
    c = tl.join((((T >> 16) & 15) - Z).to(tl.int8), (((T >> 20) & 15) - Z).to(tl.int8))
    d = tl.join((((T >> 24) & 15) - Z).to(tl.int8), (((T >> 28) & 15) - Z).to(tl.int8))
    e = tl.join(tl.join(a, b), tl.join(c, d))  # row, q, t, bits of i from the lowest
    return tl.reshape(tl.permute(e, (0, 5, 4, 3, 1, 2)), (R, 128))


@triton.jit(do_not_specialize=["M", "C", "G", "splits"])
def few(
    x,
    x_scale,
    codes,
    scale,
    zero,
    bias,
    out,
    out_scale,
    partial,
    locks,
    M,
    N,
    K,
    C,
    G,
    splits,
    X: tl.constexpr,
    NIBBLES: tl.constexpr,
    GROUP: tl.constexpr,
    TOKEN: tl.constexpr,
    EVEN: tl.constexpr,
    TAIL: tl.constexpr,
    CAST: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    KW: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
    FLOAT: tl.constexpr,
    THEN: tl.constexpr,
):
    """Few tokens: `out.T = W @ x.T`, the input dimension split over `KW` places of a tile and over blocks.

    Args:
        x: codes [M, K]; x_scale: [M] (`TOKEN`) or one; X: their qtype.
        codes: canonical; C is stretches of BK columns.
        GROUP: columns per scale; 0: per row. EVEN: K is BK C.
        AHEAD: pieces of 512 bytes to fetch into the L2 before the kernel ahead has ended.
        FLOAT: multiply in float32, for the interpreter, where x and W are float8.
        THEN: what results go through, by name.
    """
    pm = tl.program_id(0)
    pn = tl.program_id(1)
    pk = tl.program_id(2)
    R: tl.constexpr = KW * BN
    r = tl.arange(0, R)
    col = tl.arange(0, KW * BM)
    slice_r = r // BN
    slice_c = col // BM
    n = tl.minimum(pn * BN + r % BN, N - 1)
    m = tl.minimum(pm * BM + col % BM, M - 1)
    each = tl.cdiv(tl.cdiv(C, KW), splits) * KW
    begin = pk * each
    end = tl.minimum(begin + each, C)
    tl.assume(end > begin)
    k = tl.arange(0, BK)
    SUM: tl.constexpr = tl.int32 if X == "int8" else tl.float32
    # Hopper sums float8 in 14 bits. Where codes come out, whose steps would show it, halves are multiplied.
    EXACT: tl.constexpr = X != "int8" and out_scale is not None
    acc = tl.zeros((R, KW * BM), SUM if GROUP == 0 else tl.float32)
    xs = x + m.to(tl.int64)[:, None] * K + slice_c[:, None] * BK + k[None, :]
    if NIBBLES:
        lane = tl.arange(0, 4)[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
        ws = codes.to(tl.pointer_type(tl.int32)) + (n.to(tl.int64) * (K // 8) + slice_r * 16)[:, None, None] + lane
    else:
        ws = codes + (n.to(tl.int64) * K + slice_r * BK)[:, None] + k[None, :]
    if AHEAD > 0:
        i = tl.arange(0, AHEAD)
        byte = (begin * BK if not NIBBLES else begin * 64) + i // BN * 512
        past = end * BK if not NIBBLES else end * 64
        width = K if not NIBBLES else K // 2
        row = tl.minimum(pn * BN + i % BN, N - 1).to(tl.int64)
        fetch(codes + row * width + byte, byte + 512 <= past, 512)
    if PDL:
        wait_for_kernel_ahead()
        launch_dependents()
    for c in tl.range(begin, end, KW, num_stages=STAGES):
        if EVEN and not TAIL:
            a = tl.load(xs + c * BK)
        else:
            column = (c + slice_c)[:, None] * BK + k[None, :]
            a = tl.load(xs + c * BK, mask=(column < K) & (c + slice_c < end)[:, None], other=0.0)
        if NIBBLES:
            if TAIL:
                T = tl.load(ws + c * 16, mask=(c + slice_r < end)[:, None, None], other=0)
            else:
                T = tl.load(ws + c * 16)
            where = scale_at(n, (c + slice_r) * BK // GROUP if GROUP > 0 else 0, G, 1, False)
            here = c + slice_r < end
            z = None
            if zero is not None:
                z = tl.load(zero + where, mask=here, other=0).to(tl.int32)[:, None, None]
            w = nibble_bytes(T, z)
            a = tl.reshape(tl.permute(tl.reshape(a, (KW * BM, 4, 4, 8)), (0, 3, 1, 2)), (KW * BM, 128))
            if GROUP > 0:
                product = tl.dot(w, tl.trans(a), out_dtype=SUM).to(tl.float32)
                acc += product * tl.load(scale + where, mask=here, other=0.0).to(tl.float32)[:, None]
            else:
                acc = tl.dot(w, tl.trans(a), acc, out_dtype=SUM)
        else:
            if EVEN and not TAIL:
                w = tl.load(ws + c * BK)
            else:
                column = (c + slice_r)[:, None] * BK + k[None, :]
                w = tl.load(ws + c * BK, mask=(column < K) & (c + slice_r < end)[:, None], other=0.0)
            if FLOAT:
                w, a = w.to(tl.float32), a.to(tl.float32)
            elif EXACT:
                w, a = w.to(tl.float16), a.to(tl.float16)
            acc = tl.dot(w, tl.trans(a), acc, out_dtype=SUM)
    if KW > 1:
        acc = tl.where(slice_r[:, None] == slice_c[None, :], acc, 0)
        acc = tl.sum(tl.sum(tl.reshape(acc, (KW, BN, KW, BM)), 2), 0)
    rows = pn * BN + tl.arange(0, BN)
    tokens = pm * BM + tl.arange(0, BM)
    at = tokens.to(tl.int64)[None, :] * N + rows[:, None]
    inside = (tokens < M)[None, :] & (rows < N)[:, None]
    last = True
    if SPLIT:
        size = tl.cast(M, tl.int64) * N
        tl.store(partial + pk * size + at, acc, mask=inside)
        tl.debug_barrier()
        lock = locks + pm * tl.num_programs(1) + pn
        last = tl.atomic_add(lock, 1, sem="acq_rel", scope="gpu") == splits - 1
        if last:
            acc = tl.zeros((BN, BM), acc.dtype)
            for i in range(splits):
                acc += tl.load(partial + i * size + at, mask=inside, other=0, cache_modifier=".cg")
            tl.store(lock, 0)
    if last:
        s = None
        if GROUP == 0:
            s = tl.load(scale + rows, mask=rows < N, other=0.0).to(tl.float32)
        y = rescaled(acc, x_scale, s, bias, tokens, rows, M, N, TOKEN, X != "int8" or GROUP > 0, True)
        put(through(y, THEN), out, out_scale, at, inside, X, CAST)


@triton.jit(do_not_specialize=["M"])
def many(
    x,
    x_scale,
    codes,
    scale,
    bias,
    out,
    out_scale,
    M,
    N,
    K,
    X: tl.constexpr,
    TOKEN: tl.constexpr,
    EVEN: tl.constexpr,
    CAST: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STRIPE: tl.constexpr,
    STAGES: tl.constexpr,
    FLOAT: tl.constexpr,
    THEN: tl.constexpr,
):
    """Many tokens: tiles of `x @ W.T`, in stripes of `STRIPE` rows of tiles so that neighbours share the L2.

    Args:
        x, codes: pointers, or tensor descriptors of blocks [BM, BK] and [BN, BK] (`TMA`).
        SWAP: multiply `W @ x.T`.
    """
    pid = tl.program_id(0)
    down, across = tl.cdiv(M, BM), tl.cdiv(N, BN)
    stripe = pid // (STRIPE * across)
    height = tl.minimum(down - stripe * STRIPE, STRIPE)
    pm = stripe * STRIPE + pid % (STRIPE * across) % height
    pn = pid % (STRIPE * across) // height
    m = pm * BM + tl.arange(0, BM)
    n = pn * BN + tl.arange(0, BN)
    SUM: tl.constexpr = tl.int32 if X == "int8" else tl.float32
    # Hopper sums float8 in 14 bits. Where codes come out, whose steps would show it, halves are multiplied.
    EXACT: tl.constexpr = X != "int8" and out_scale is not None
    if SWAP:
        acc = tl.zeros((BN, BM), SUM)
    else:
        acc = tl.zeros((BM, BN), SUM)
    if not TMA:
        k = tl.arange(0, BK)
        xs = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K + k[None, :]
        ws = codes + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K + k[None, :]
    for c in tl.range(0, tl.cdiv(K, BK), num_stages=STAGES):
        if TMA:
            a = x.load([pm * BM, c * BK])
            w = codes.load([pn * BN, c * BK])
        elif EVEN:
            a = tl.load(xs + c * BK)
            w = tl.load(ws + c * BK)
        else:
            has = (c * BK + k < K)[None, :]
            a = tl.load(xs + c * BK, mask=has, other=0.0)
            w = tl.load(ws + c * BK, mask=has, other=0.0)
        if FLOAT:
            w, a = w.to(tl.float32), a.to(tl.float32)
        elif EXACT:
            w, a = w.to(tl.float16), a.to(tl.float16)
        if SWAP:
            acc = tl.dot(w, tl.trans(a), acc, out_dtype=SUM)
        else:
            acc = tl.dot(a, tl.trans(w), acc, out_dtype=SUM)
    s = tl.load(scale + n, mask=n < N, other=0.0).to(tl.float32)
    if SWAP:
        at = m.to(tl.int64)[None, :] * N + n[:, None]
        inside = (m < M)[None, :] & (n < N)[:, None]
    else:
        at = m.to(tl.int64)[:, None] * N + n[None, :]
        inside = (m < M)[:, None] & (n < N)[None, :]
    y = rescaled(acc, x_scale, s, bias, m, n, M, N, TOKEN, X != "int8", SWAP)
    put(through(y, THEN), out, out_scale, at, inside, X, CAST)
