# SPDX-License-Identifier: Apache-2.0
"""Joining single groups: how a history grows, one group at a time."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto import QTensor


@pytest.mark.parametrize("qtype", ["int8", "int4", "int2", "float8", "nf4"])
def test_single_groups_become_several(qtype: str) -> None:
    parts = [quanto.quantize_tensor(torch.randn(2, 3, 32) * 2**i, qtype, block_size=(1, 1, 32)) for i in range(4)]
    held = parts[0]
    for part in parts[1:]:
        held = torch.cat([held, part], dim=-1)
        assert isinstance(held, QTensor)
    assert held.block_size == (1, 1, 32)
    assert torch.equal(held.dequantize(), torch.cat([p.dequantize() for p in parts], dim=-1))


def test_equal_scales_stay_one() -> None:
    one = quanto.quantize_tensor(torch.randn(2, 32), "int8")
    assert torch.cat([one, one], dim=-1).block_size == (1, 64)
    other = quanto.quantize_tensor(torch.randn(2, 32), "int8", granularity="tensor")
    third = quanto.quantize_tensor(torch.randn(2, 32), "int8", granularity="tensor")
    assert not isinstance(torch.cat([other, third], dim=-1), QTensor)
