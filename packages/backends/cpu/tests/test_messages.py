# SPDX-License-Identifier: Apache-2.0
"""What the operators say of sizes and types that cannot be: the argument by its name, and no path of a build."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from weights import sample

OPS = torch.ops.quanto_cpu
HUGE = 2**63 - 1
BYTES = torch.zeros(2, 4, dtype=torch.uint8)


def _sized(size: int, block: list[int]) -> Any:
    w = sample("int8", (16, 32))
    return OPS.dequantize(*w.canonical, "int8", block, size, torch.float32)


WRONG: dict[str, Callable[[], Any]] = {
    "size must be between 0 and 281474976710656, got -1": lambda: _sized(-1, [1, 32]),
    f"size must be between 0 and 281474976710656, got {HUGE}": lambda: _sized(HUGE, [1, 32]),
    "size must be between 0 and 281474976710656, got -3": lambda: OPS.unpack(BYTES, 4, -3),
    f"size must be between 0 and 281474976710656, got {HUGE // 2}": lambda: OPS.unpack(BYTES, 4, HUGE // 2),
    "scale must have 1 elements, got 16": lambda: _sized(32, [HUGE, HUGE]),
    "x given, scale must have 2 elements, got 3": lambda: OPS.quantize(
        torch.ones(5, 64), torch.ones(3), None, None, "int8", [HUGE, 32]
    ),
    "codes must be uint8 of at least one dimension": lambda: OPS.pack(BYTES.float(), 4),
    "packed must be uint8 of at least one dimension": lambda: OPS.unpack(BYTES.view(torch.int8), 4, 8),
    "bits must be between 1 and 7, got 8": lambda: OPS.pack(BYTES, 8),
    "bits must be between 1 and 7, got 0": lambda: OPS.unpack(BYTES, 0, 8),
    "packed must have 5 bytes a row for 9 codes, got 4": lambda: OPS.unpack(BYTES, 4, 9),
    "qtype must be int8, got int4": lambda: OPS.dynamic_quantize(torch.ones(2, 32), "int4", torch.float32),
    "scale_dtype must be float32": lambda: OPS.dynamic_quantize(torch.ones(2, 32), "int8", torch.bfloat16),
    "indices must be empty, since codes have no rows; got 1": lambda: OPS.embedding(
        torch.tensor([0]), BYTES[:0].view(torch.int8), torch.ones(0, 1), None, None, "int8", [1, 4], 4, torch.float32
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_arguments_are_named(sentence: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(sentence.rpartition(" given, ")[2])) as caught:
        WRONG[sentence]()
    message = str(caught.value).splitlines()[0]
    assert not re.search(r"(^|[ ,])/", message)  # of a folder that it was built in


def test_blocks_larger_than_the_weight_are_one_block() -> None:
    x = torch.randn(5, 64)
    codes = OPS.quantize(x, torch.full((1, 1), 0.1), None, None, "int8", [HUGE, HUGE])
    assert torch.equal(codes, OPS.quantize(x, torch.full((1, 1), 0.1), None, None, "int8", [5, 64]))
    values = OPS.dequantize(codes, torch.full((1, 1), 0.1), None, None, "int8", [HUGE, HUGE], 64, torch.float32)
    torch.testing.assert_close(values, codes * 0.1, rtol=1e-6, atol=0)


@pytest.mark.parametrize("group", [16, 32, 48, 64, 128])
@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "int2", "fp4", "nf4"])
def test_integers_at_their_ends(qtype: str, group: int, isa: str) -> None:
    """Sums of the largest products that there are, of one sign: they are exact, in 16 bits too."""
    w = sample(qtype, (20, 320), group, "int" if qtype in ("int8", "int4") else "none")
    lowest = {"int8": -128, "fp4": 0xFF}.get(qtype, 0)  # of a code of the lowest value, or bytes of several
    tensors = (torch.full_like(w.canonical[0], lowest), torch.ones_like(w.canonical[1]), *w.canonical[2:])
    value = OPS.dequantize(*tensors, qtype, list(w.blocks), 320, torch.float32).double()
    for tokens in (1, 8, 20):
        x = torch.full((tokens, 320), -128, dtype=torch.int8)
        want = x.double() @ value.T
        y = OPS.scaled_linear(x, torch.ones(1), *tensors, None, "int8", qtype, list(w.blocks), None, torch.float32)
        torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=0)
        y = OPS.linear_integer(x.float(), *tensors, None, qtype, list(w.blocks))
        rounding = 1e-2 if qtype in ("int8", "nf4") else 1e-6  # steps of which neighbours may be 128 in sum
        torch.testing.assert_close(y.double(), want, rtol=rounding, atol=0)
