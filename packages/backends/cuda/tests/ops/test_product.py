# SPDX-License-Identifier: Apache-2.0
"""The kernel for many quantized activations: what it takes, and that what it computes otherwise is not believed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda.ops import product, scaled
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.ops.weights import facts

KNOWN: dict[str, Any] = {"m": 300, "n": 64, "size": 128, "x_qtype": "int8", "qtype": "int8", "token": True}


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"x_qtype": "float8_e5m2", "qtype": "float8_e5m2"}, True),
        ({"m": product.TOKENS - 1}, False),
        ({"n": 36}, False),  # rows of the result that are no whole 16 bytes
        ({"size": 136}, False),
        ({"qtype": "int4"}, False),
        ({"qtype": "float8_e4m3fn"}, False),
        ({"token": False}, False),
        ({"block": []}, False),
        ({"block": [1, 32]}, False),
        ({"dtype": torch.float32}, False),
    ],
)
def test_takes(change: dict[str, Any], taken: bool) -> None:
    given = {**KNOWN, "dtype": torch.bfloat16, **change}
    block = given.pop("block", [1, given["size"]])
    assert product.takes(f=facts(given["qtype"], block, given["size"]), **given) is taken


@pytest.mark.parametrize("right", [True, False])
def test_is_compared_with_the_other_kernel_once(right: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def start(x: Any, xs: Any, codes: Any, scale: Any, bias: Any, out: torch.Tensor, tile: Any, then: str) -> None:
        calls.append(tile)
        y = (x.float() @ codes.float().t()) * xs[:, None] * scale.float().t() + bias.float()
        out.copy_(y.relu() if right and then == "relu" else -y)

    trial = Trial("tests")
    monkeypatch.setattr(product, "start", start)
    monkeypatch.setattr(product, "TRIAL", trial)
    monkeypatch.setattr(trial, "serves", lambda device: not trial.refused)
    monkeypatch.setattr(trial, "_try", lambda call: (call(), True)[1])
    w = quanto.quantize_tensor(torch.randn(64, 128, device=device).bfloat16(), "int8")
    x, xs = torch.randint(-127, 128, (150, 128), dtype=torch.int8, device=device), torch.rand(150, 1, device=device)
    bias = torch.randn(64, device=device).bfloat16()
    given = (x, xs, w.codes, w.scale, None, None, bias, "int8", "int8", [1, 128], None, torch.bfloat16, "relu")
    y = (x.double() @ w.codes.double().t()) * xs.double() * w.scale.double().t() + bias.double()
    want = y.relu()
    if right:
        got = [scaled.scaled_linear(*given) for _ in range(2)]
    else:
        with pytest.warns(UserWarning, match="alone: it computes something else"):
            got = [scaled.scaled_linear(*given)]
        got.append(scaled.scaled_linear(*given))
    assert all(((g.double() - want).abs() <= 8e-3 * want.abs().max()).all() for g in got)
    assert trial.refused is not right
    assert len(trial.checked) == right
    assert len(calls) == (3 if right else 2)  # one to compile
