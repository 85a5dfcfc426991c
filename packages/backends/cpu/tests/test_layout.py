# SPDX-License-Identifier: Apache-2.0
"""Panels give back every bit, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from weights import sample

from quanto_backend_cpu.layout import PANELS
from quanto_backend_cpu.specs import EVERY, INTEGERS


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    x, y = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(x, y)


@given(
    st.integers(1, 70),
    st.integers(1, 300),
    st.sampled_from([None, 0, 8, 16, 24, 32, 37, 64, 128]),
    st.sampled_from(sorted(EVERY)),
    st.sampled_from(["none", "int", "float"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_there_and_back(
    rows: int, size: int, group: int | None, qtype: str, zero: str, scale_dtype: torch.dtype
) -> None:
    if qtype in ("mxfp4", "mxfp8", "nvfp4"):
        group = 32
    w = sample(qtype, (rows, size), group, zero if qtype in INTEGERS else "none", scale_dtype)
    back = PANELS.unpack(w.panels, qtype, w.blocks, size)
    assert all(_same(a, b) for a, b in zip(w.canonical, back, strict=True))
    assert w.panels[0].shape[0] == rows


@pytest.mark.parametrize("block", [(2, 32), (16, 16), (5, 7)])
def test_blocks_of_rows(block: tuple[int, int]) -> None:
    from quanto.kernels import Request
    from quanto.kernels.problems import random_weight

    request = Request("linear", "cpu", torch.float32, "int8", block, (33, 96), torch.float32, "int")
    w = random_weight(request, torch.Generator().manual_seed(0))
    back = PANELS.unpack(PANELS.pack(w, "int8", block, 96), "int8", block, 96)
    assert all(_same(a, b) for a, b in zip(w, back, strict=True))


def test_a_panel_holds_words_side_by_side() -> None:
    """The picture of csrc/format.h, for int4: word 0 of rows 0 to 15, then word 1 …."""
    codes = torch.arange(16 * 8, dtype=torch.uint8).view(16, 8)
    packed = PANELS.pack((codes, torch.ones(16, 1), None, None), "int4", (1, 16), 16)[0].view(-1)
    expected = torch.cat([codes[:, :4].reshape(-1), codes[:, 4:].reshape(-1)])
    assert torch.equal(packed, expected)
