# SPDX-License-Identifier: Apache-2.0
"""Timing by the registry's kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quanto
from quanto.planner.layers import find_layers
from quanto.planner.speed import layer_seconds, time_layer


def test_equal_shapes_are_timed_once() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 16))
    found = layer_seconds(find_layers(model), [quanto.Scheme("int8"), quanto.Scheme("int4")])
    assert found[0] == found[1]
    assert all(0 < seconds < 1 for row in found for seconds in row)


def test_a_floating_layer_can_be_timed_too() -> None:
    assert 0 < time_layer((16, 32), None, torch.float32, seconds=0.001) < 1


def test_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0: only linear layers"):
        layer_seconds(find_layers(nn.Sequential(nn.Conv2d(2, 2, 1))), [quanto.Scheme("int8")])


def test_static_activations_need_no_calibration() -> None:
    assert 0 < time_layer((16, 32), quanto.Scheme.of("w8a8-static"), torch.float32, seconds=0.001) < 1
