# SPDX-License-Identifier: Apache-2.0
"""The bytes of packed tensors, one by one."""

from __future__ import annotations

import pytest
import torch

from optimum.quanto.tensor.packed import PackedTensor


@pytest.mark.parametrize(
    ("bits", "count", "expected"),
    [
        (4, 8, [0x40, 0x51, 0x62, 0x73]),
        (4, 5, [0x30, 0x41, 0x02]),
        (2, 4, [0 | 1 << 2 | 2 << 4 | 3 << 6]),
    ],
)
def test_bytes(bits: int, count: int, expected: list[int]) -> None:
    values = torch.arange(count, dtype=torch.uint8)[:, None]
    packed = PackedTensor.pack(values, bits)
    assert packed._data.flatten().tolist() == expected
    assert packed.shape == values.shape
    assert torch.equal(packed.unpack(), values)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="bits must be 2 or 4"):
        PackedTensor.pack(torch.zeros(4, 4, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="data must be uint8"):
        PackedTensor(torch.zeros(2, 4), 4, (4, 4), (4, 1))
