# SPDX-License-Identifier: Apache-2.0
"""Plain rounding for trials is what freezing by absmax or min/max does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms.trial import rounded


@pytest.mark.parametrize("fields", [{"weights": "int8"}, {"weights": "int4", "group_size": 32}, {"weights": "nf4"}])
def test_as_freezing_does(fields: dict[str, object]) -> None:
    layer = quanto.quantize(nn.Sequential(nn.Linear(64, 16)), **fields)[0]  # type: ignore[arg-type]
    found = rounded(layer, layer.weight.detach())
    layer.freeze()
    torch.testing.assert_close(found, layer.weight.dequantize(), rtol=0, atol=0)
