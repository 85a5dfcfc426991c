# SPDX-License-Identifier: Apache-2.0
"""Packing and unpacking of codes narrower than a byte. Bound: the bytes moved."""

from __future__ import annotations

import triton
import triton.language as tl

from .dense import canonical_code
from .encode import pack_codes

__all__ = ["pack_rows", "unpack_rows"]


@triton.jit(do_not_specialize=["N"])
def pack_rows(codes, out, N, K, width, BITS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """`codes[N, K]`, one a byte, to rows of `width` bytes."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    mask = (n < N)[:, None] & (k < K)[None, :]
    code = tl.load(codes + n[:, None] * K + k[None, :], mask=mask, other=0).to(tl.int32)
    pack_codes(code, out, n, N, tl.program_id(1) * (BK // 8), width, BITS, BN, BK)


@triton.jit(do_not_specialize=["N"])
def unpack_rows(packed, out, N, K, width, BITS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Rows of `width` bytes to `out[N, K]`, one code a byte."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    mask = (n < N)[:, None] & (k < K)[None, :]
    code = canonical_code(packed, (n * width)[:, None], k[None, :], BITS, mask)
    tl.store(out + n[:, None] * K + k[None, :], code.to(tl.uint8), mask=mask)
