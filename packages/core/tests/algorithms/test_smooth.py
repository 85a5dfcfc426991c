# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: quantized activations with outliers lose less."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import quanto
from quanto.algorithms import Pipeline, SmoothQuant


def test_less_error(tiny: Any, batches: list[torch.Tensor]) -> None:
    def make() -> Any:
        model = tiny()
        with torch.no_grad():
            for block in model.blocks:
                block.norm.weight[::16] = 50
        return model

    model, plain, smooth = make(), make(), make()
    for m in (plain, smooth):
        quanto.quantize(m, "int8", "int8", dynamic=True, include="blocks.*")
    quanto.freeze(plain)
    Pipeline("smooth").run(smooth, batches)
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (smooth, plain))
    assert error < 0.5 * least


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got -1"):
        SmoothQuant(-1)
