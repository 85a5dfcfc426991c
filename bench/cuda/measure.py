# SPDX-License-Identifier: Apache-2.0
"""Measures candidates: graph replays over cold weights, and the error against float64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quanto_backend_cuda.tune.timing import COLD, replayed

from .candidate import Candidate, Missing
from .plan import Plan

__all__ = ["ceilings", "linear_rows"]

DEVICE = torch.device("cuda", 0)
# Seconds in which the chip gets back the clock that the products in float64, for the error, have cost.
_REST = 0.1


def ceilings() -> dict[str, float]:
    """GB/s of reading (a sum over 4 GiB) and TFLOP/s of a bf16 product of 8192 × 8192 × 8192."""
    x = torch.randn(1 << 30, device=DEVICE)
    read = min(replayed([x.sum, x.sum], DEVICE), replayed([x.amax, x.amax], DEVICE))
    del x
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = replayed([lambda: a @ b, lambda: b @ a], DEVICE)
    return {"read_gbs": (1 << 32) / read / 1e3, "bf16_tflops": 2 * 8192**3 / product / 1e6}


def linear_rows(plan: Plan, candidates: list[Candidate], limits: dict[str, float]) -> Iterator[dict[str, Any]]:
    """One row per shape, candidate and number of tokens; a candidate that can't run says why in `note`."""
    end = time.monotonic() + plan.seconds
    for n, k in plan.shapes:
        torch.manual_seed(0)
        weight = torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16)
        inputs = {m: torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16) for m in plan.tokens}
        for candidate in candidates:
            if plan.only and not all(word in str(candidate) for word in plan.only.split()):
                continue
            yield from _rows(candidate, weight, inputs, limits, end)
            torch.cuda.empty_cache()


def _rows(
    candidate: Candidate, weight: Tensor, inputs: dict[int, Tensor], limits: dict[str, float], end: float
) -> Iterator[dict[str, Any]]:
    n, k = weight.shape
    same = {"source": candidate.source, "name": candidate.name, "n": n, "k": k}
    if time.monotonic() > end:
        yield {**same, "m": 0, "note": "out of time"}
        return
    try:
        built = candidate.build(weight, COLD)
        values = built.values()
    except Missing as missing:
        yield {**same, "m": 0, "note": f"missing: {missing}"}
        return
    except Exception as error:
        yield {**same, "m": 0, "note": _words(error)}
        return
    for m, x in inputs.items():
        if not candidate.tokens[0] <= m <= candidate.tokens[1]:
            continue
        try:
            yield {**same, "m": m, **_figures(built, x, values, limits)}
        except Exception as error:
            yield {**same, "m": m, "note": _words(error)}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _figures(built: Any, x: Tensor, values: Tensor, limits: dict[str, float]) -> dict[str, float | None]:
    calls = built.calls(x)
    got = calls[0]()
    torch.cuda.synchronize()
    time.sleep(_REST)
    us = replayed(calls, DEVICE)
    want = x[:64].double() @ values.t()
    error = ((got[:64].double() - want).norm() / want.norm()).item() if got.is_floating_point() else None
    m, k = x.shape
    n = values.shape[0]
    gbs, tflops = built.nbytes / us / 1e3, 2 * m * n * k / us / 1e6
    return {
        "us": us,
        "gbs": gbs,
        "tflops": tflops,
        "share": gbs / limits["read_gbs"] if m < 64 else tflops / limits["bf16_tflops"],
        "error": error,
    }
