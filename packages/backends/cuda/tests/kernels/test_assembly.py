# SPDX-License-Identifier: Apache-2.0
"""The PTX that decodes integers, run by a small reader of the few instructions it has: every result is exact."""

from __future__ import annotations

import itertools
import random
import re
import struct

import pytest

from quanto_backend_cuda.kernels import assembly

MASK = 0xFFFFFFFF


def number(bits: int, half: bool) -> float:
    packed = struct.pack("<H", bits) if half else struct.pack("<I", bits << 16)
    value: float = struct.unpack("<e" if half else "<f", packed)[0]
    return value


def encoded(value: float, half: bool) -> int:
    bits: int = struct.unpack("<H", struct.pack("<e", value))[0] if half else assembly._bfloat16(value)
    assert number(bits, half) == value, "rounded"
    return bits


def run(text: str, inputs: dict[int, int], half: bool) -> list[float]:
    """What the statements leave in the outputs `$0 …`."""
    registers: dict[str, int] = {f"${i}": v for i, v in inputs.items()}
    outputs: dict[int, int] = {}

    def get(name: str) -> int:
        return registers[name] if name in registers else int(name, 0)

    for statement in filter(None, (s.strip() for s in text.strip("{} ").split(";"))):
        parts = re.fullmatch(r"mov\.b32 \{\$(\d+), \$(\d+)\}, (\w+)", statement)
        if parts:
            outputs |= {int(parts[1]): get(parts[3]) & 0xFFFF, int(parts[2]): get(parts[3]) >> 16}
            continue
        name, rest = statement.split(" ", 1)
        to, *given = (a.strip() for a in rest.split(","))
        if name == ".reg":
            continue
        values = [get(g) for g in given]
        if name.startswith(("add.", "fma.")):
            result = 0
            for shift in (0, 16):
                a, b, *c = (number(v >> shift & 0xFFFF, half) for v in values)
                result |= encoded(a * b + c[0] if c else a + b, half) << shift
        elif name == "prmt.b32":
            assert values[2] == 0x5410
            result = values[0] & 0xFFFF | (values[1] & 0xFFFF) << 16
        elif name == "lop3.b32":
            assert values[3] == 0xEA
            result = values[0] & values[1] | values[2]
        elif name == "shr.u32":
            result = values[0] >> values[1]
        elif name == "shl.b32":
            result = values[0] << values[1]
        else:
            assert name == "mov.b32"
            result = values[0]
        registers[to] = result & MASK
    return [number(outputs[i], half) for i in range(len(outputs))]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_integers_are_exact(bits: int, half: bool) -> None:
    generator = random.Random(0)
    pairs, offset = (4 if bits == 4 else 8), 1 << (bits - 1)
    for zero in (None, 0, 1 - offset, offset, 5):
        text = assembly.three(half, zero is not None) if bits == 3 else assembly.integers(bits, half, zero is not None)
        for _ in range(40):
            word, third = generator.getrandbits(32), generator.getrandbits(32)
            inputs = {2 * pairs: word}
            if bits == 3:
                inputs[2 * pairs + 1] = third
            if zero is not None:
                inputs[2 * pairs + len(inputs)] = encoded(-(1024 if half else 128) - offset - zero, half) * 0x10001
            want = []
            for p, e in itertools.product(range(pairs), (0, 1)):
                low = word >> (16 // pairs * p + 16 * e) & (15 if bits == 4 else 3)
                code = low | (third >> (2 * p + e) & 1) << 2 if bits == 3 else low
                want.append(code - offset - (zero or 0))
            assert run(text, inputs, half) == want
