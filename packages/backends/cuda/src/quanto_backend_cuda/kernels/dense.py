# SPDX-License-Identifier: Apache-2.0
"""Decoding a weight to memory: whole, in stretches of rows, or the rows of an embedding.

Bound: the bytes written. 14336 x 4096 to bfloat16 takes some 50 us, 2.7 TB/s.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import lanes, rows_at, scale_at, scale_value
from .decode import decode, element

__all__ = ["decode_rows", "decode_tiles"]


@triton.jit
def canonical_code(codes, at, k, BITS: tl.constexpr, mask):
    """Codes of columns k, as int32; `at` is the first byte of the row."""
    if BITS == 8:
        return tl.load(codes + at + k, mask=mask, other=0).to(tl.int32) & 255
    else:
        bit = k * BITS
        code = tl.load(codes + at + bit // 8, mask=mask, other=0).to(tl.int32) & 255
        code = code >> (bit % 8)
        if 8 % BITS:
            over = mask & (bit % 8 + BITS > 8)
            code |= (tl.load(codes + at + bit // 8 + 1, mask=over, other=0).to(tl.int32) & 255) << (8 - bit % 8)
        return code & ((1 << BITS) - 1)


@triton.jit(do_not_specialize=["count", "V", "G"])
def decode_rows(
    codes,
    scale,
    zero,
    shared,
    indices,
    out,
    count,
    V,
    width,
    K,
    G,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SCALE8: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Decodes canonical rows: `out[i] = W[indices[i]]`, or row i where there are no indices.

    Args:
        indices: int32 or int64 [count], or None. A row that does not exist is decoded to NaN.
        V: rows of the weight; width: bytes of a row; G: groups of a row.
        GROUP: columns per scale; 0: a row has one. ROWS: rows per scale; 0: the weight has one.
    """
    i = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    exists = i < count
    n = i
    if indices is not None:
        n = tl.load(indices + i, mask=exists, other=0).to(tl.int64)
        exists = exists & (n >= 0) & (n < V)
        n = tl.where(exists, n, 0)
    mask = exists[:, None] & (k < K)[None, :]
    code = canonical_code(codes, (n * width)[:, None], k[None, :], BITS, mask)
    value = element(code, KIND)
    if GROUP == 0 or GROUP % BK == 0:
        where = scale_at(n, (tl.program_id(1) * BK) // GROUP if GROUP > 0 else 0, G, ROWS, False)[:, None]
        has = exists[:, None]
    else:
        where = scale_at(n[:, None], (k // GROUP)[None, :], G, ROWS, False)
        has = mask
    if zero is not None:
        value -= tl.load(zero + where, mask=has, other=0).to(tl.float32)
    factor = scale_value(tl.load(scale + where, mask=has, other=0), SCALE8)
    if shared is not None:
        factor *= tl.load(shared)
    value = value * factor
    if indices is not None:
        value = tl.where(exists[:, None], value, float("nan"))
    inside = (i < count)[:, None] & (k < K)[None, :]
    tl.store(out + i[:, None] * K + k[None, :], value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first", "column", "C", "G"])
def decode_tiles(
    codes,
    scale,
    zero,
    shared,
    out,
    first,
    column,
    N,
    K,
    stride,
    C,
    G,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    STILED: tl.constexpr,
    SCALE8: tl.constexpr,
    ASM: tl.constexpr,
    WIDE: tl.constexpr,
    BN: tl.constexpr,
):
    """Decodes rows from `first` on and columns from `column` (a multiple of 128) on, of a tiled weight.

    Args:
        out: [rows, stride]; its row 0 is row `first`, its column 0 is column `column`.
        N, K: the weight's.
    """
    chunk = column // 128 + tl.program_id(0)
    i = tl.program_id(1) * BN + tl.arange(0, BN)
    n = tl.minimum(first + i, N - 1)
    # halves hold every code exactly, but those of nf4
    FULL: tl.constexpr = WIDE or (KIND == "nf4" and out.dtype.element_ty == tl.float32)
    D: tl.constexpr = tl.float32 if FULL else (tl.float16 if out.dtype.element_ty == tl.float16 else tl.bfloat16)
    base, STEP = rows_at(n, C, KIND, True)
    words = codes.to(tl.pointer_type(tl.int32)) + chunk.to(tl.int64) * STEP
    T = tl.load(words + base[:, None, None] + lanes(KIND))
    H = None
    if KIND == "int3":
        planes = codes.to(tl.pointer_type(tl.int16)) + chunk.to(tl.int64) * (2 * STEP)
        H = tl.load(planes + (2 * base - (n % 16) * 8 + 256)[:, None, None] + lanes(KIND)).to(tl.int32) & 0xFFFF
    A = decode(T, H, None, KIND, D, ASM and not FULL, False).to(tl.float32)
    k = tl.arange(0, 128)
    if GROUP == 0 or GROUP % 128 == 0:
        where = scale_at(n, chunk // (GROUP // 128) if GROUP > 0 else 0, G, ROWS, STILED)[:, None]
    else:
        where = scale_at(n[:, None], tl.minimum((chunk * 128 + k) // GROUP, G - 1)[None, :], G, ROWS, STILED)
    if zero is not None:
        A -= tl.load(zero + where).to(tl.float32)
    factor = scale_value(tl.load(scale + where), SCALE8)
    if shared is not None:
        factor *= tl.load(shared)
    A *= factor
    column_out = tl.program_id(0) * 128 + k
    inside = (first + i < N)[:, None] & ((column_out < stride) & (chunk * 128 + k < K))[None, :]
    tl.store(out + i.to(tl.int64)[:, None] * stride + column_out[None, :], A.to(out.dtype.element_ty), mask=inside)
