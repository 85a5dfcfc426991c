# SPDX-License-Identifier: Apache-2.0
"""Learned rounding: less error than what it starts from, within half a step of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import quanto
from quanto.algorithms import AutoRound, Pipeline


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"zero_point": "int"}])
def test_less_error_than_least_squares(options: dict[str, Any], tiny: Any, batches: list[torch.Tensor]) -> None:
    model, rounded, found = tiny(), tiny(), tiny()
    for m in (rounded, found):
        quanto.quantize(m, "int3", group_size=32, include="blocks.*", algorithm="mse", **options)
    quanto.freeze(rounded)
    Pipeline(AutoRound(40)).run(found, batches)
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (found, rounded))
    assert error < 0.8 * least


def test_floats_are_left_to_their_scheme(tiny: Any, batches: list[torch.Tensor]) -> None:
    one, other = (quanto.quantize(tiny(), "nf4", group_size=32) for _ in range(2))
    quanto.freeze(one)
    Pipeline("autoround").run(other, batches)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="steps and samples must be at least 1, got 0 and 1"):
        AutoRound(0)
