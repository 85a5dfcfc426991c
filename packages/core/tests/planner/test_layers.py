# SPDX-License-Identifier: Apache-2.0
"""Which layers are planned, and their stored size."""

from __future__ import annotations

from torch import nn

import quanto
from quanto.planner.layers import encode, find_layers, stored_bits


def test_the_layers_are_those_that_quantize_takes() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Conv1d(8, 4, 3), nn.ReLU())
    names = [layer.name for layer in find_layers(model)]
    quantized = quanto.quantized(model, "int8")
    assert names == [n for n, m in quantized.named_modules() if isinstance(m, quanto.nn.QModule)]


def test_size_is_known_without_quantizing() -> None:
    for layer in find_layers(nn.Sequential(nn.Linear(96, 24), nn.ConvTranspose2d(4, 6, 3))):
        for scheme in (quanto.Scheme("int8"), quanto.Scheme("int3", group_size=32), quanto.Scheme("nf4")):
            assert stored_bits(layer, scheme) == 8 * encode(layer, scheme).nbytes
