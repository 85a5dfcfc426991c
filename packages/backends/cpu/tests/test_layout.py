# SPDX-License-Identifier: Apache-2.0
"""Panels give back every bit, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from weights import sample

import quanto
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


@pytest.mark.parametrize("shape", [(0, 32), (32, 0)])
def test_one_scale_for_nothing(shape: tuple[int, int]) -> None:
    canonical = (torch.zeros(shape, dtype=torch.int8), torch.ones(()), None, None)
    back = PANELS.unpack(PANELS.pack(canonical, "int8", (), shape[1]), "int8", (), shape[1])
    assert all(_same(a, b) for a, b in zip(canonical, back, strict=True))


def test_a_panel_holds_words_side_by_side() -> None:
    """The picture of csrc/format.h, for int4: word 0 of rows 0 to 15, then word 1 …."""
    codes = torch.arange(16 * 8, dtype=torch.uint8).view(16, 8)
    packed = PANELS.pack((codes, torch.ones(16, 1), None, None), "int4", (1, 16), 16)[0].view(-1)
    expected = torch.cat([codes[:, :4].reshape(-1), codes[:, 4:].reshape(-1)])
    assert torch.equal(packed, expected)


class _Attention(nn.Module):
    def __init__(self, keys: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, rows in (("q_proj", 48), ("k_proj", keys), ("v_proj", 16)):
            setattr(self, name, nn.Linear(96, rows, bias=bias, dtype=dtype))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.q_proj(x), self.k_proj(x), self.v_proj(x)]


class _Products(TorchDispatchMode):
    """Rows of each product that reaches the library."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "quanto_cpu":
            self.rows.append(args[1].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["int8", "int4", "int3", "nf4", "float8_e4m3fn"])
def test_layers_whose_rows_fill_panels_run_as_one(scheme: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    for keys, bias, names in ((32, True, ("q_proj", "k_proj", "v_proj")), (24, False, None)):
        model = quanto.freeze(quanto.quantize(_Attention(keys, bias, dtype), scheme))
        with torch.no_grad():
            want, saved = model(x), {name: t.clone() for name, t in model.state_dict().items()}
            assert quanto.join(model) == ([] if names is None else [names])
            with _Products() as products:
                got = model(x)
        assert products.rows == ([48 + keys + 16] if names else [48, keys, 16])
        close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2.0**-7, "atol": 1e-3}
        torch.testing.assert_close(got, want, **close)  # panels are taken by fours, which orders sums in another way
        assert all(_same(t, saved[name]) for name, t in model.state_dict().items())
