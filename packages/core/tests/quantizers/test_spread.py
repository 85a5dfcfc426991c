# SPDX-License-Identifier: Apache-2.0
"""Parameters of every element, whatever the blocks."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto import reference
from quanto.quantizers import Target, fit
from quanto.quantizers.spread import spread_parameters


@pytest.mark.parametrize("blocks", [(), (1, 20), (1, 8), (3, 7)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_dequantize(blocks: tuple[int, ...], symmetric: bool) -> None:
    weight = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    target = Target(quanto.qint4, blocks, torch.float32, symmetric)
    p = fit(weight, target)
    codes = reference.quantize(weight, *p, "int4", blocks)
    scale, zero = spread_parameters(p, target, weight)
    elements = reference.decode(quanto.packing.unpack(codes, 4, 20), quanto.qint4, torch.float32)
    found = (elements if zero is None else elements - zero) * scale
    expected = reference.dequantize(codes, *p, "int4", blocks, 20, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
