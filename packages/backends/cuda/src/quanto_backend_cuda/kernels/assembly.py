# SPDX-License-Identifier: Apache-2.0
"""PTX that decodes packed words in registers, as text.

`quanto_backend_cuda.kernels.decode` says what is where in a word, and has the same in plain Triton.

It costs, in instructions per weight: int4 1.4, int2 1.1, int3 1.9, int8 2.0 (fp16 1.3), float8 2.5 (fp16 0.8),
tables 3.2; a chip at 3 TB/s leaves an SM 4.7 per four-bit weight. Integers come from the bits of a float: `code |
0x4300` is 128 + code in bfloat16 (0x6400: 1024 + code in float16), and one addition takes 128 and the zero point away.
"""

from __future__ import annotations

import struct

from quanto.qtypes import qfp4, qnf4

__all__ = ["E2M1", "NF4", "float8", "int8", "integers", "scaled", "table", "three"]


def _outputs(pairs: int) -> str:
    """Splits the registers r0 … into the halves that are the outputs."""
    return " ".join(f"mov.b32 {{${2 * p}, ${2 * p + 1}}}, r{p};" for p in range(pairs))


def _twice(value: float, half: bool) -> str:
    """A number in both halves of a register."""
    bits = struct.unpack("<H", struct.pack("<e", value))[0] if half else _bfloat16(value)
    return f"{bits * 0x10001:#x}"


def _subtracted(lines: list[str], places: list[int], magic: int, offset: int, operand: str, half: bool) -> str:
    """Takes the magic number and an offset away, or an operand that holds both together with a zero point.

    Args:
        places: how many bits above the lowest the code of each pair stands, so that its sum with the magic number is
            scaled down; every result is exact.
    """
    pairs, used = len(places), sorted(set(places))
    head = [f".reg .b32 r<{pairs}>, z<{used[-1] + 1}>, f<{used[-1] + 1}>;"]
    for at in used:
        part = magic / (1 << at)
        if at or not half:
            head.append(f"mov.b32 f{at}, {_twice(1 / (1 << at), half)};")
        if not operand:
            head.append(f"mov.b32 z{at}, {_twice(-part - offset, half)};")
        elif at == 0:
            head.append(f"mov.b32 z0, {operand};")
        elif half:
            head.append(f".reg .b32 c{at}; mov.b32 c{at}, {_twice(magic - part, half)}; add.f16x2 z{at}, z0, c{at};")
        else:
            head.append(f".reg .b32 c{at}; mov.b32 c{at}, {_twice(magic - part, half)};")
            head.append(f"fma.rn.bf16x2 z{at}, z0, f0, c{at};")  # sm_80 has no add.bf16x2
    tail = []
    for p, at in enumerate(places):
        if half and at == 0:
            tail.append(f"add.f16x2 r{p}, r{p}, z0;")
        else:
            tail.append(f"fma.rn.{'f16x2' if half else 'bf16x2'} r{p}, r{p}, f{at}, z{at};")
    return "{ " + " ".join([*head, *lines, *tail, _outputs(pairs)]) + " }"


def _fitting(pairs: int, step: int, bits: int, half: bool) -> list[int]:
    """How high each code may stay in its word: as many as a mantissa has room for need one shift."""
    fit = ((10 if half else 7) - bits) // step + 1
    return [step * (p % fit) for p in range(pairs)]


def integers(bits: int, half: bool, zero: bool) -> str:
    """int4 or int2. Inputs: the word; with `zero` also magic + zero point, negated in both halves."""
    pairs, magic, mask = 16 // bits, 0x64006400 if half else 0x43004300, (1 << bits) - 1
    places = _fitting(pairs, bits, bits, half)
    word = source = f"${2 * pairs}"
    lines = [".reg .b32 s;"]
    for p, at in enumerate(places):
        if p and at == 0:
            lines.append(f"shr.u32 s, {word}, {bits * p};")
            source = "s"
        lines.append(f"lop3.b32 r{p}, {source}, {(mask << at) * 0x10001:#x}, {magic:#x}, 0xEA;")
    operand = f"${2 * pairs + 1}" if zero else ""
    return _subtracted(lines, places, 1024 if half else 128, 1 << (bits - 1), operand, half)


def three(half: bool, zero: bool) -> str:
    """int3. Inputs: the two low bits, the high bits; with `zero` also magic + zero point, negated in both halves."""
    magic = 0x64006400 if half else 0x43004300
    places = _fitting(8, 2, 3, half)
    # bit 2p + e of the third bits becomes bit 2p of half e, and then one that is two above its place
    lines = [".reg .b32 s, g, h;", "shr.u32 s, $17, 1; prmt.b32 g, $17, s, 0x5410; shl.b32 h, g, 2;"]
    source = "$16"
    for p, at in enumerate(places):
        if p and at == 0:
            lines.append(f"shr.u32 s, $16, {2 * p}; shr.u32 h, g, {2 * p - 2};")
            source = "s"
        lines.append(f"lop3.b32 r{p}, {source}, {(3 << at) * 0x10001:#x}, {magic:#x}, 0xEA;")
        lines.append(f"lop3.b32 r{p}, h, {(4 << at) * 0x10001:#x}, r{p}, 0xEA;")
    return _subtracted(lines, places, 1024 if half else 128, 4, "$18" if zero else "", half)


def int8(half: bool, zero: bool) -> str:
    """int8. Inputs: the word; with `zero` (float16) also 1152 + zero point, negated in both halves."""
    if half:  # 0x64 above a byte of the offset code: 1024 + 128 + value
        lines = [".reg .b32 x; xor.b32 x, $4, 0x80808080;"]
        lines.append("prmt.b32 r0, x, 0x64646464, 0x4140; prmt.b32 r1, x, 0x64646464, 0x4342;")
        return _subtracted(lines, [0, 0], 1024, 128, "$5" if zero else "", half)
    # seven bits of mantissa hold 128 + (value & 127); the sign bit says whether to take 128 or 256 away
    lines = [".reg .b32 r<2>, x, y, minus; mov.b32 minus, 0xBF80BF80;"]
    for p, selector in enumerate(("0x4140", "0x4342")):
        lines.append(f"prmt.b32 x, $4, 0, {selector}; lop3.b32 y, x, 0x7F007F, 0x43004300, 0xEA;")
        lines.append(f"lop3.b32 x, x, 0x800080, 0x43004300, 0xEA; fma.rn.bf16x2 r{p}, x, minus, y;")
    return "{ " + " ".join([*lines, _outputs(2)]) + " }"


def scaled(text: str, pairs: int, operand: int, half: bool) -> str:
    """Assembly of this module, and after it a product with an operand that holds a scale in both halves (Hopper)."""
    multiply = "mul.rn.f16x2" if half else "mul.rn.bf16x2"
    products = " ".join(f"{multiply} r{p}, r{p}, ${operand};" for p in range(pairs))
    outputs = _outputs(pairs)
    assert text.count(outputs) == 1
    return text.replace(outputs, f"{products} {outputs}")


def float8(e4m3: bool, half: bool) -> str:
    """float8. Input: the word. e4m3 needs compute capability 8.9."""
    lines = [".reg .b32 r<2>, x; .reg .b16 a, b, u, v; .reg .f32 f, g;", "mov.b32 {a, b}, $4;"]
    for p, source in enumerate("ab"):
        if e4m3:
            lines.append(f"cvt.rn.f16x2.e4m3x2 r{p}, {source};")
        else:  # the upper byte of a half
            lines.append(f"prmt.b32 r{p}, $4, 0, {'0x1404' if p == 0 else '0x3424'};")
        if not half:
            lines.append(f"mov.b32 {{u, v}}, r{p}; cvt.f32.f16 f, u; cvt.f32.f16 g, v;")
            lines.append(f"cvt.rn.bf16x2.f32 r{p}, g, f;")
    return "{ " + " ".join(lines) + " " + _outputs(2) + " }"


def table(values: tuple[float, ...], half: bool) -> str:
    """Sixteen values. Input: the word. Nibbles select bytes of the table; bit 3 chooses between its halves."""
    bits = [struct.unpack("<H", struct.pack("<e", v))[0] if half else _bfloat16(v) for v in values]
    low = [sum((bits[4 * i + j] & 0xFF) << 8 * j for j in range(4)) for i in range(4)]
    high = [sum((bits[4 * i + j] >> 8) << 8 * j for j in range(4)) for i in range(4)]
    lines = [".reg .b32 r<4>, w, n, m, a, b, l, h;"]
    for word in range(2):
        lines.append("mov.b32 w, $8;" if word == 0 else "shr.u32 w, $8, 16;")
        lines.append("and.b32 n, w, 0x7777; shr.u32 m, w, 1; and.b32 m, m, 0x4444; prmt.b32 m, 0, 0xFFFFFFFF, m;")
        for name, part_of in (("l", low), ("h", high)):
            first, second, third, fourth = (f"{word_of:#x}" for word_of in part_of)
            lines.append(f"mov.b32 a, {first}; mov.b32 b, {second}; prmt.b32 {name}, a, b, n;")
            lines.append(f"mov.b32 a, {third}; mov.b32 b, {fourth}; prmt.b32 a, a, b, n;")
            lines.append(f"lop3.b32 {name}, m, a, {name}, 0xCA;")
        lines.append(f"prmt.b32 r{2 * word}, l, h, 0x5140; prmt.b32 r{2 * word + 1}, l, h, 0x7362;")
    return "{ " + " ".join(lines) + " " + _outputs(4) + " }"


def _bfloat16(value: float) -> int:
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def _values(table: tuple[float, ...] | None) -> tuple[float, ...]:
    assert table is not None
    return table


NF4, E2M1 = _values(qnf4.table), _values(qfp4.table)
