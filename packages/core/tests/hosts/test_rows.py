# SPDX-License-Identifier: Apache-2.0
"""Quantizing some rows at a time."""

from __future__ import annotations

import pytest
import torch

from quanto import Scheme
from quanto.hosts import rows
from quanto.nn.slot import Slot
from quanto.tensor.quantize import quantize_parts


@pytest.mark.parametrize(
    "scheme", [Scheme("int8"), Scheme("int4", group_size=32), Scheme("int8", granularity="tensor")]
)
def test_chunks_give_the_same_codes(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 64)
    slot = Slot(scheme, tuple(weight.shape), weight.dtype, block_size=scheme.block_size((24, 64)))
    whole = quantize_parts(weight, scheme, slot.block_size)
    monkeypatch.setattr(rows, "CHUNK", 64 * 5)
    for one, other in zip(rows.quantize_rows(slot, weight), whole, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
