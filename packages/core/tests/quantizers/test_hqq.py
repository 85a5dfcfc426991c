# SPDX-License-Identifier: Apache-2.0
"""Half-quadratic quantization: nearer than min/max for most weights, for every qtype, in about its time."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto.quantizers.hqq import _kept


@pytest.mark.parametrize("qtype", [name for name, q in sorted(quanto.qtypes.items()) if q.is_integer])
@pytest.mark.parametrize("zero_point", [None, "int", "float"])
def test_nearer_than_min_and_max(qtype: str, zero_point: str | None) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    symmetric = True if zero_point is None else None
    plain = quanto.Scheme(qtype, group_size=64, algorithm="absmax" if symmetric else "minmax")
    found = quanto.Scheme(qtype, group_size=64, algorithm="hqq", symmetric=symmetric, zero_point=zero_point)
    least, error = ((quanto.quantize_tensor(x, scheme).dequantize() - x).abs().mean() for scheme in (plain, found))
    assert error < least * (0.97 if quanto.qtypes[qtype].bits < 8 else 1.02)


@pytest.mark.parametrize("qtype", sorted(quanto.qtypes))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_qtype(qtype: str, dtype: torch.dtype) -> None:
    x = torch.randn(16, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[3] = 0
    q = quanto.quantize_tensor(x, qtype, algorithm="hqq")
    least = quanto.quantize_tensor(x, qtype)
    assert q.dequantize().isfinite().all()
    assert torch.equal(q.dequantize()[3], x[3])
    assert (q.dequantize() - x).abs().mean() < 1.25 * (least.dequantize() - x).abs().mean() + 1e-3


def test_only_large_residuals_are_outliers() -> None:
    found = _kept(torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0]))
    torch.testing.assert_close(found[1:4], torch.tensor([-0.1, 0.0, 0.1]))
    assert found[4] == -found[0]
    assert 0.1 < found[4] < 0.5


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"zero_point": "int"}])
@pytest.mark.parametrize("qtype", ["int4", "int2"])
@pytest.mark.parametrize("value", [3.7, -0.02])
def test_blocks_of_one_value_lose_nothing(qtype: str, options: dict[str, object], value: float) -> None:
    x = torch.full((8, 64), value)
    q = quanto.quantize_tensor(x, quanto.Scheme(qtype, group_size=32, algorithm="hqq", **options))
    torch.testing.assert_close(q.dequantize(), x, rtol=1e-3, atol=0)  # the scale's rounding to 16 bits
