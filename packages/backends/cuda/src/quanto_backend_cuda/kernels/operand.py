# SPDX-License-Identifier: Apache-2.0
"""The left operand of `wgmma` from packed words, scaled: `quanto_backend_cuda.kernels.decode` for Hopper alone.

A product by a scale that is written in Triton costs a permutation of every register more: LLVM pairs the halves its own
way. Here it is a part of the assembly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import assembly

__all__ = ["operand", "twice"]


def _texts(half: bool) -> dict[str, str]:
    """By kind, `+` with a zero point, and `*` with a scale."""
    found = {}
    for kind, bits in (("int4", 4), ("int2", 2)):
        found[kind] = assembly.integers(bits, half, False)
        found[kind + "+"] = assembly.integers(bits, half, True)
    found["int3"] = assembly.three(half, False)
    found["int3+"] = assembly.three(half, True)
    found["int8"] = assembly.int8(half, False)
    found["float8_e4m3fn"] = assembly.float8(True, half)
    found["float8_e5m2"] = assembly.float8(False, half)
    found["nf4"] = assembly.table(assembly.NF4, half)
    found["fp4"] = assembly.table(assembly.E2M1, half)
    for name, text in list(found.items()):
        kind = name.rstrip("+")
        if kind == "int3":  # nobody scales these
            continue
        pairs = 8 if kind == "int2" else 4 if kind in ("int4", "nf4", "fp4") else 2
        found[name + "*"] = assembly.scaled(text, pairs, 2 * pairs + 1 + name.endswith("+"), half)
    return found


_BF16, _FP16 = _texts(False), _texts(True)


@triton.constexpr_function
def _text(KIND, HALF, ZERO, SCALED):
    texts = _FP16 if HALF else _BF16
    return texts[KIND + ("+" if ZERO else "") + ("*" if SCALED else "")]


@triton.constexpr_function
def _columns(KIND, WORDS):
    """Columns in so many words of four threads."""
    return WORDS * {"int8": 16, "float8_e4m3fn": 16, "float8_e5m2": 16, "int2": 64, "int3": 64}.get(KIND, 32)


@triton.constexpr_function
def _constraints(OUTPUTS, INPUTS):
    return ",".join(["=h"] * OUTPUTS + ["r"] * INPUTS)


@triton.jit
def twice(value, DTYPE: tl.constexpr):
    """A number of `DTYPE` in both halves of an int32."""
    bits = value.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | (bits << 16)


@triton.jit
def _four(ASM: tl.constexpr, T, Z, S):
    if S is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(4, 1), [T], (tl.int16,) * 4, True, 1)
    else:
        v = tl.inline_asm_elementwise(ASM, _constraints(4, 2), [T, S], (tl.int16,) * 4, True, 1)
    return tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))


@triton.jit
def _eight(ASM: tl.constexpr, T, Z, S):
    if Z is None and S is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(8, 1), [T], (tl.int16,) * 8, True, 1)
    elif Z is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(8, 2), [T, S], (tl.int16,) * 8, True, 1)
    elif S is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(8, 2), [T, Z], (tl.int16,) * 8, True, 1)
    else:
        v = tl.inline_asm_elementwise(ASM, _constraints(8, 3), [T, Z, S], (tl.int16,) * 8, True, 1)
    low = tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))
    high = tl.join(tl.join(v[4], v[5]), tl.join(v[6], v[7]))
    return tl.join(low, high)


@triton.jit
def _joined(v):
    a = tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))
    b = tl.join(tl.join(v[4], v[5]), tl.join(v[6], v[7]))
    c = tl.join(tl.join(v[8], v[9]), tl.join(v[10], v[11]))
    d = tl.join(tl.join(v[12], v[13]), tl.join(v[14], v[15]))
    return tl.join(tl.join(a, b), tl.join(c, d))


@triton.jit
def _sixteen(ASM: tl.constexpr, T, Z, S):
    if Z is None and S is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(16, 1), [T], (tl.int16,) * 16, True, 1)
    elif Z is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(16, 2), [T, S], (tl.int16,) * 16, True, 1)
    elif S is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(16, 2), [T, Z], (tl.int16,) * 16, True, 1)
    else:
        v = tl.inline_asm_elementwise(ASM, _constraints(16, 3), [T, Z, S], (tl.int16,) * 16, True, 1)
    return _joined(v)


@triton.jit
def _three(ASM: tl.constexpr, T, H, Z):
    if Z is None:
        v = tl.inline_asm_elementwise(ASM, _constraints(16, 2), [T, H], (tl.int16,) * 16, True, 1)
    else:
        v = tl.inline_asm_elementwise(ASM, _constraints(16, 3), [T, H, Z], (tl.int16,) * 16, True, 1)
    return _joined(v)


@triton.jit
def operand(T, Z, S, KIND: tl.constexpr, DTYPE: tl.constexpr, H=None):
    """Decodes words to `DTYPE` [rows, columns].

    Args:
        T: int32 [rows, 4, words], in the order of `quanto_backend_cuda.kernels.decode`.
        Z: zero point and magic number, negated, in both halves of an int32 of the same shape; or None.
        S: scale in both halves of an int32 of the same shape, or None.
        H: int32 of the same shape with 16 third bits each (int3; none there are scaled), or None.
    """
    HALF: tl.constexpr = tl.float16 == DTYPE
    ASM: tl.constexpr = _text(KIND, HALF, Z is not None, S is not None)
    if KIND == "int8" or KIND == "float8_e4m3fn" or KIND == "float8_e5m2":
        c = tl.permute(_four(ASM, T, Z, S), (0, 2, 4, 1, 3))
    elif KIND == "int3":
        c = tl.permute(_three(ASM, T, H, Z), (0, 2, 6, 5, 4, 1, 3))
    elif KIND == "int2":
        c = tl.permute(_sixteen(ASM, T, Z, S), (0, 2, 6, 5, 4, 1, 3))
    else:
        c = tl.permute(_eight(ASM, T, Z, S), (0, 2, 5, 4, 1, 3))
    return tl.reshape(c.to(DTYPE, bitcast=True), (T.shape[0], _columns(KIND, T.shape[2])))
