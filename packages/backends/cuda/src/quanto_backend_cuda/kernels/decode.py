# SPDX-License-Identifier: Apache-2.0
"""From packed words to the operand of a matrix instruction, in registers.

A word of 32 bits holds the codes of one lane. Its P pairs become the columns `8 p + 2 q + e` of a stretch of `8 P`
columns, where q = 0 … 3 is the lane's place among the four that share a row: what `mma.m16n8k16` and `wgmma` want of
their A operand, so that no code ever moves between threads.

    kind             pairs  pair p, halves e = 0, 1
    int4             4      bits 4p … 4p+3, and the same 16 bits higher
    int2             8      bits 2p … 2p+1, and the same 16 bits higher
    int3             8      as int2, and the third bit is bit 2p + e of 16 bits in another place
    nf4 fp4          4      nibbles 2p and 2p+1
    int8 e4m3 e5m2   2      bytes 2p and 2p+1

`ASM` decodes with the instructions of `quanto_backend_cuda.kernels.assembly`; without it plain Triton does the same,
on any device and in the interpreter. Both give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import assembly

__all__ = ["decode", "natural", "zero_operand"]

_INT4_BF16 = tl.constexpr(assembly.integers(4, False, False))
_INT4_BF16_ZERO = tl.constexpr(assembly.integers(4, False, True))
_INT4_FP16 = tl.constexpr(assembly.integers(4, True, False))
_INT4_FP16_ZERO = tl.constexpr(assembly.integers(4, True, True))
_INT3_BF16 = tl.constexpr(assembly.three(False, False))
_INT3_BF16_ZERO = tl.constexpr(assembly.three(False, True))
_INT3_FP16 = tl.constexpr(assembly.three(True, False))
_INT3_FP16_ZERO = tl.constexpr(assembly.three(True, True))
_INT2_BF16 = tl.constexpr(assembly.integers(2, False, False))
_INT2_BF16_ZERO = tl.constexpr(assembly.integers(2, False, True))
_INT2_FP16 = tl.constexpr(assembly.integers(2, True, False))
_INT2_FP16_ZERO = tl.constexpr(assembly.integers(2, True, True))
_INT8_BF16 = tl.constexpr(assembly.int8(False, False))
_INT8_FP16 = tl.constexpr(assembly.int8(True, False))
_INT8_FP16_ZERO = tl.constexpr(assembly.int8(True, True))
_E4M3_BF16 = tl.constexpr(assembly.float8(True, False))
_E4M3_FP16 = tl.constexpr(assembly.float8(True, True))
_E5M2_BF16 = tl.constexpr(assembly.float8(False, False))
_E5M2_FP16 = tl.constexpr(assembly.float8(False, True))
_NF4_BF16 = tl.constexpr(assembly.table(assembly.NF4, False))
_NF4_FP16 = tl.constexpr(assembly.table(assembly.NF4, True))
_FP4_BF16 = tl.constexpr(assembly.table(assembly.E2M1, False))
_FP4_FP16 = tl.constexpr(assembly.table(assembly.E2M1, True))
_NF4 = tl.constexpr(assembly.NF4)
_FP4 = tl.constexpr(assembly.E2M1)


@triton.jit
def zero_operand(zero, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """What takes integer zero points away with the magic number: their sum, negated, in both halves of an int32."""
    MAGIC: tl.constexpr = 128 if tl.bfloat16 == DTYPE else 1024
    OFFSET: tl.constexpr = 128 if KIND == "int8" else (8 if KIND == "int4" else (4 if KIND == "int3" else 2))
    value = (zero.to(tl.int32) + (MAGIC + OFFSET)).to(tl.float32)
    bits = (-value.to(DTYPE)).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | (bits << 16)


@triton.jit
def e4m3(code):
    """The float32 value of float8_e4m3fn codes in int32; shifts alone, so that any device and any type can do it."""
    sign = (code & 0x80) << 24
    magnitude = ((sign | ((code & 0x7F) << 20)).to(tl.float32, bitcast=True)) * 1.329227995784916e36  # 2 ** 120
    return tl.where((code & 0x7F) == 0x7F, float("nan"), magnitude)


@triton.jit
def e5m2(code):
    """The float32 value of float8_e5m2 codes in int32; by shifts too, for the reason that `scale_value` has."""
    sign, rest = (code & 0x80) << 24, (code & 0x7F) << 21
    magnitude = (sign | rest).to(tl.float32, bitcast=True) * 5.192296858534828e33  # 2 ** 112
    return tl.where((code & 0x7C) == 0x7C, (sign | 0x70000000 | rest).to(tl.float32, bitcast=True), magnitude)


@triton.jit
def element(code, KIND: tl.constexpr):
    """The float32 value of unpacked codes in int32, before zero point and scale."""
    if KIND == "int8":
        return ((code << 24) >> 24).to(tl.float32)
    elif KIND == "int4":
        return (code - 8).to(tl.float32)
    elif KIND == "int3":
        return (code - 4).to(tl.float32)
    elif KIND == "int2":
        return (code - 2).to(tl.float32)
    elif KIND == "float8_e4m3fn":
        return e4m3(code)
    elif KIND == "float8_e5m2":
        return e5m2(code)
    else:
        TABLE: tl.constexpr = _NF4 if KIND == "nf4" else _FP4
        value = tl.zeros(code.shape, tl.float32)
        for i in tl.static_range(16):
            value = tl.where(code == i, TABLE[i], value)
        return value


@triton.jit
def _code(T, H, p: tl.constexpr, e: tl.constexpr, KIND: tl.constexpr):
    if KIND == "int4":
        return (T >> (4 * p + 16 * e)) & 15
    elif KIND == "int2":
        return (T >> (2 * p + 16 * e)) & 3
    elif KIND == "int3":
        return ((T >> (2 * p + 16 * e)) & 3) | (((H >> (2 * p + e)) & 1) << 2)
    elif KIND == "nf4" or KIND == "fp4":
        return (T >> (4 * (2 * p + e))) & 15
    else:
        return (T >> (8 * (2 * p + e))) & 255


@triton.jit
def _pair(T, H, Z, p: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr):
    low = element(_code(T, H, p, 0, KIND), KIND)
    high = element(_code(T, H, p, 1, KIND), KIND)
    return tl.join((low - Z).to(DTYPE), (high - Z).to(DTYPE))


@triton.jit
def _four(T, Z, ASM: tl.constexpr):
    """Words of two pairs, joined to int16 [rows, 4, words, e, p]."""
    if Z is None:
        v = tl.inline_asm_elementwise(ASM, "=h,=h,=h,=h,r", [T], (tl.int16,) * 4, True, 1)
    else:
        v = tl.inline_asm_elementwise(ASM, "=h,=h,=h,=h,r,r", [T, Z], (tl.int16,) * 4, True, 1)
    return tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))


@triton.jit
def _eight(T, Z, ASM: tl.constexpr):
    """Words of four pairs, joined to int16 [rows, 4, words, e, p, p]."""
    if Z is None:
        v = tl.inline_asm_elementwise(ASM, "=h,=h,=h,=h,=h,=h,=h,=h,r", [T], (tl.int16,) * 8, True, 1)
    else:
        v = tl.inline_asm_elementwise(ASM, "=h,=h,=h,=h,=h,=h,=h,=h,r,r", [T, Z], (tl.int16,) * 8, True, 1)
    low = tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))
    high = tl.join(tl.join(v[4], v[5]), tl.join(v[6], v[7]))
    return tl.join(low, high)


@triton.jit
def _sixteen(T, H, Z, ASM: tl.constexpr):
    """Words of eight pairs, joined to int16 [rows, 4, words, e, p, p, p]."""
    OUT: tl.constexpr = "=h,=h,=h,=h,=h,=h,=h,=h,=h,=h,=h,=h,=h,=h,=h,=h,"
    if H is None and Z is None:
        v = tl.inline_asm_elementwise(ASM, OUT + "r", [T], (tl.int16,) * 16, True, 1)
    elif H is None:
        v = tl.inline_asm_elementwise(ASM, OUT + "r,r", [T, Z], (tl.int16,) * 16, True, 1)
    elif Z is None:
        v = tl.inline_asm_elementwise(ASM, OUT + "r,r", [T, H], (tl.int16,) * 16, True, 1)
    else:
        v = tl.inline_asm_elementwise(ASM, OUT + "r,r,r", [T, H, Z], (tl.int16,) * 16, True, 1)
    a = tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))
    b = tl.join(tl.join(v[4], v[5]), tl.join(v[6], v[7]))
    c = tl.join(tl.join(v[8], v[9]), tl.join(v[10], v[11]))
    d = tl.join(tl.join(v[12], v[13]), tl.join(v[14], v[15]))
    return tl.join(tl.join(a, b), tl.join(c, d))


@triton.jit
def _assembled(T, H, zero, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """By assembly: [rows, 4, words, e, p …]; zero points are taken away with the magic number where that is free."""
    BF: tl.constexpr = tl.bfloat16 == DTYPE
    if KIND == "float8_e4m3fn":
        c = _four(T, None, _E4M3_BF16 if BF else _E4M3_FP16)
    elif KIND == "float8_e5m2":
        c = _four(T, None, _E5M2_BF16 if BF else _E5M2_FP16)
    elif KIND == "nf4":
        c = _eight(T, None, _NF4_BF16 if BF else _NF4_FP16)
    elif KIND == "fp4":
        c = _eight(T, None, _FP4_BF16 if BF else _FP4_FP16)
    elif zero is None or (KIND == "int8" and BF):  # a constant operand spoils the layout of T
        if KIND == "int8":
            c = _four(T, None, _INT8_BF16 if BF else _INT8_FP16)
        elif KIND == "int4":
            c = _eight(T, None, _INT4_BF16 if BF else _INT4_FP16)
        elif KIND == "int3":
            c = _sixteen(T, H, None, _INT3_BF16 if BF else _INT3_FP16)
        else:
            c = _sixteen(T, None, None, _INT2_BF16 if BF else _INT2_FP16)
    else:
        Z = tl.broadcast_to(zero_operand(zero, KIND, DTYPE), T.shape)
        if KIND == "int8":
            c = _four(T, Z, _INT8_FP16_ZERO)
        elif KIND == "int4":
            c = _eight(T, Z, _INT4_BF16_ZERO if BF else _INT4_FP16_ZERO)
        elif KIND == "int3":
            c = _sixteen(T, H, Z, _INT3_BF16_ZERO if BF else _INT3_FP16_ZERO)
        else:
            c = _sixteen(T, None, Z, _INT2_BF16_ZERO if BF else _INT2_FP16_ZERO)
    c = c.to(DTYPE, bitcast=True)
    if KIND == "int8" and BF and zero is not None:
        c = c - zero.to(DTYPE)[:, :, :, None, None]
    return c


@triton.jit
def _shifted(T, H, zero, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """By plain Triton: [rows, 4, words, e, p …]."""
    Z = 0.0 if zero is None else zero.to(tl.float32)
    low = tl.join(_pair(T, H, Z, 0, KIND, DTYPE), _pair(T, H, Z, 1, KIND, DTYPE))
    if KIND == "int8" or KIND == "float8_e4m3fn" or KIND == "float8_e5m2":
        return low
    else:
        c = tl.join(low, tl.join(_pair(T, H, Z, 2, KIND, DTYPE), _pair(T, H, Z, 3, KIND, DTYPE)))
        if KIND == "int3" or KIND == "int2":
            d = tl.join(_pair(T, H, Z, 4, KIND, DTYPE), _pair(T, H, Z, 5, KIND, DTYPE))
            return tl.join(c, tl.join(d, tl.join(_pair(T, H, Z, 6, KIND, DTYPE), _pair(T, H, Z, 7, KIND, DTYPE))))
        else:
            return c


@triton.jit
def decode(T, H, zero, KIND: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr, SYNC: tl.constexpr):
    """Decodes words to `DTYPE` [rows, 128].

    Args:
        T: int32 [rows, 4, words]; 128 codes a row.
        H: int32 [rows, 4, 2] with 16 third bits each (int3), or None.
        zero: integer zero points, int32 [rows, 1, 1], or None.
        SYNC: order the columns as Triton (3.6 to 3.9) wants them for `mma.sync`, four of a lane side by side.
    """
    R: tl.constexpr = T.shape[0]
    c = _assembled(T, H, zero, KIND, DTYPE) if ASM else _shifted(T, H, zero, KIND, DTYPE)
    # columns: word, pair from its highest bit, lane, half; under SYNC the lowest bit of the pair after the lane
    if KIND == "int8" or KIND == "float8_e4m3fn" or KIND == "float8_e5m2":
        c = tl.permute(c, (0, 2, 1, 4, 3) if SYNC else (0, 2, 4, 1, 3))
    elif KIND == "int3" or KIND == "int2":
        c = tl.permute(c, (0, 2, 6, 5, 1, 4, 3) if SYNC else (0, 2, 6, 5, 4, 1, 3))
    else:
        c = tl.permute(c, (0, 2, 5, 1, 4, 3) if SYNC else (0, 2, 5, 4, 1, 3))
    return tl.reshape(c, (R, 128))


@triton.jit
def natural(X, KIND: tl.constexpr):
    """Brings columns of x [rows, 128] into the order in which canonical words decode."""
    R: tl.constexpr = X.shape[0]
    if KIND == "int8" or KIND == "float8_e4m3fn" or KIND == "float8_e5m2":
        X = tl.permute(tl.reshape(X, (R, 4, 8, 2, 2)), (0, 2, 3, 1, 4))
    elif KIND == "int4":
        X = tl.permute(tl.reshape(X, (R, 4, 4, 2, 4)), (0, 2, 4, 1, 3))
    elif KIND == "int2":
        X = tl.permute(tl.reshape(X, (R, 4, 2, 2, 8)), (0, 2, 4, 1, 3))
    else:
        X = tl.permute(tl.reshape(X, (R, 4, 4, 4, 2)), (0, 2, 3, 1, 4))
    return tl.reshape(X, (R, 128))
