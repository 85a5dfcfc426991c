# SPDX-License-Identifier: Apache-2.0
"""float8 products by cuBLAS: what it takes, what it is given, and that tables choose it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quanto_backend_cuda.ops import cublas, product
from quanto_backend_cuda.ops.encode import dynamic_quantize
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.tables import Tile


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"scale": torch.float32}, True),
        ({"scale": torch.float16}, False),
        ({"qtype": "int8"}, False),
        ({"qtype": "float8_e5m2"}, False),
        ({"bias": True}, False),
        ({"then": "relu"}, False),
        ({"dtype": torch.float16}, False),
        ({"n": 40}, False),
    ],
)
def test_takes(change: dict[str, Any], taken: bool) -> None:
    g = {"scale": torch.bfloat16, "qtype": "float8_e4m3fn", "bias": False, "then": "", "dtype": torch.bfloat16, "n": 48}
    g.update(change)
    scale, out = torch.ones(g["n"], 1, dtype=g["scale"]), torch.empty(3, g["n"], dtype=g["dtype"])
    bias = torch.zeros(g["n"], dtype=g["dtype"]) if g["bias"] else None
    assert cublas.takes(g["qtype"], scale, bias, out, g["then"]) is taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_are_widened(dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2064 rows: two whole blocks of the kernel and a part; the smallest scale is below the normal numbers."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch, "_scaled_mm", lambda x, w, **options: given.update(options, shapes=(x.shape, w.shape)))
    scale = torch.rand(2064, 1, device=device).to(dtype)
    scale[-1] = 1e-39
    codes = torch.zeros(2064, 32, device=device).to(torch.float8_e4m3fn)
    x, xs, out = codes[:5], torch.rand(5, device=device), torch.empty(5, 2064, dtype=torch.bfloat16, device=device)
    cublas.start(x, xs, codes, scale, out)
    assert given["shapes"] == ((5, 32), (32, 2064))
    assert given["out"] is out
    assert (given["scale_a"] == xs[:, None]).all()
    assert given["scale_b"].dtype == torch.float32
    assert (given["scale_b"] == scale.float().t()).all()


@pytest.mark.parametrize(("kw", "by_cublas"), [(0, True), (1, False)])
def test_tables_choose_it(kw: int, by_cublas: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    for module, trial in ((cublas, Trial("cuBLAS")), (product, Trial("Gluon"))):
        monkeypatch.setattr(trial, "serves", lambda device: True)
        monkeypatch.setattr(trial, "run", lambda kind, start, *rest, **options: start() or True)
        monkeypatch.setattr(module, "TRIAL", trial)
    monkeypatch.setattr(cublas, "start", lambda *given: done.append("cuBLAS"))
    monkeypatch.setattr(product, "start", lambda *given: done.append("Gluon"))
    monkeypatch.setattr(product, "nearest", lambda *given: Tile(128, 128, kw))
    x, w = (torch.randn(n, 64, device=device, dtype=torch.bfloat16) for n in (130, 48))
    (x, xs), (w, ws) = (dynamic_quantize(t, "float8_e4m3fn", torch.float32) for t in (x, w))
    out = torch.empty(130, 48, dtype=torch.bfloat16, device=device)
    assert product.product(x, xs, w, ws, None, out, "float8_e4m3fn", "", lambda: out)
    assert done == ["cuBLAS" if by_cublas else "Gluon"]
