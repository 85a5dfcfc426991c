# SPDX-License-Identifier: Apache-2.0
"""Where the words and the scales of a weight lie, how a scale is read, and how memory is asked for ahead."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["fetch", "lanes", "row_bytes", "rows_at", "scale_at", "scale_value"]


@triton.constexpr_function
def row_bytes(KIND):
    """Bytes of 128 codes."""
    return {"int8": 128, "float8_e4m3fn": 128, "float8_e5m2": 128, "int3": 48, "int2": 32}.get(KIND, 64)


@triton.jit
def rows_at(n, C, KIND: tl.constexpr, TILED: tl.constexpr):
    """Where rows n begin, in words (int64), and the words from one stretch of 128 columns to the next."""
    W: tl.constexpr = row_bytes(KIND) // 4
    if TILED:
        IN_TILE: tl.constexpr = 8 if KIND == "int3" else W
        return (n // 16).to(tl.int64) * (C * 16 * W) + (n % 16) * IN_TILE, 16 * W
    else:
        return n.to(tl.int64) * (C * W), W


@triton.jit
def lanes(KIND: tl.constexpr):
    """Offsets of the words of a row, [1, 4, words]: those of lane q lie together."""
    T: tl.constexpr = 2 if KIND == "int3" else row_bytes(KIND) // 16
    return tl.arange(0, 4)[None, :, None] * T + tl.arange(0, T)[None, None, :]


@triton.jit
def scale_at(n, group, G, ROWS: tl.constexpr, STILED: tl.constexpr):
    """Offsets of the scales of rows n and groups `group`; `ROWS` rows share one."""
    if STILED:
        return (n // 16) * (G * 16) + n % 16 + group * 16
    elif ROWS == 0:
        return n * 0 + group * 0
    else:
        return (n // ROWS) * G + group


@triton.jit
def scale_value(raw, SCALE8: tl.constexpr):
    """A scale in float32; one-byte scales come as uint8.

    bfloat16 is widened by a shift: of `half(float(half) * float(bfloat16))` LLVM makes a product of halves, in which
    scales below 2**-14 lose their bits (InstCombine counts digits, and not the range of the exponent).
    """
    if SCALE8 == "e8m0":
        bits = raw.to(tl.int32)
        power = tl.where(bits == 0, 0x00400000, bits << 23).to(tl.float32, bitcast=True)
        return tl.where(bits == 255, float("nan"), power)
    elif SCALE8 == "e4m3":
        code = raw.to(tl.int32)
        value = (((code & 0x80) << 24) | ((code & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36
        return tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    elif raw.dtype == tl.bfloat16:
        return (raw.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return raw.to(tl.float32)


@triton.jit
def fetch(address, wanted, BYTES: tl.constexpr):
    """Asks the L2 for `BYTES` (a multiple of 16) at each address: harmless, even if someone still writes there."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $3; mov.b32 $0, 0; }",
        "=r,l,r,r",
        [address.to(tl.int64), wanted.to(tl.int32), tl.full(address.shape, BYTES, tl.int32)],
        tl.int32,
        False,
        1,
    )
