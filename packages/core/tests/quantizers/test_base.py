# SPDX-License-Identifier: Apache-2.0
"""Codes made of parts of a weight are those of the whole, and so is what the parts take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import quanto
from quanto.quantizers import base


@pytest.mark.parametrize("shape", [(37, 96), (5, 7, 64), (1, 300)])
@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "nf4", "nvfp4", "float8_e4m3fn"])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_parts_make_the_same_codes(
    shape: tuple[int, ...], qtype: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    blocks = (rows, *(1,) * (x.ndim - 2), 32) if rows else ()
    symmetric = False if qtype.startswith("int") else None
    want = quanto.quantize_tensor(x, qtype, block_size=blocks, symmetric=symmetric)
    monkeypatch.setattr(base, "_PART", 300)
    got = quanto.quantize_tensor(x, qtype, block_size=blocks, symmetric=symmetric)
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.dequantize(), want.dequantize())


@pytest.mark.parametrize("qtype", ["int4", "int8"])
def test_no_temporary_is_as_large_as_a_large_weight(qtype: str) -> None:
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                largest = max(largest, out.numel() * out.element_size())
            return out

    x = torch.randn(2048, 4096, dtype=torch.float32).to(torch.bfloat16)
    with Watch():
        quanto.quantize_tensor(x, qtype, symmetric=True)
    assert 0 < largest <= max(base._PART * 4, x.numel())
