# SPDX-License-Identifier: Apache-2.0
"""Editing frozen weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quanto
from quanto.hosts.editing import codes, editable, restore


def frozen() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    quanto.freeze(quanto.quantize(layer, "int8"))
    return layer


def test_an_edit_is_quantized() -> None:
    layer = frozen()
    before = layer.weight.dequantize()
    with editable(layer):  # type: ignore[arg-type]
        layer.weight.data += 1
    assert layer.frozen
    error = (layer.weight.dequantize() - before - 1).abs().max()
    assert error <= (before.abs().max() + 1) / 127


def test_a_failed_edit_changes_nothing_and_codes_can_be_put_back() -> None:
    layer = frozen()
    before = layer.weight.dequantize()
    held = codes(layer)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="must match"), editable(layer):  # type: ignore[arg-type]
        layer.weight.data += torch.ones(3)
    assert torch.equal(layer.weight.dequantize(), before)
    with editable(layer):  # type: ignore[arg-type]
        layer.weight.data += 1
    restore(layer, held)  # type: ignore[arg-type]
    assert torch.equal(layer.weight.dequantize(), before)
